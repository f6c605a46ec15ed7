"""The OpenAPI document and the page that shows it, from our own files: no CDN."""

from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Router
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import OpenAPIMediaType, Operation, Reference, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

from server.generation import GenerationBody
from server.identity.guard import PUBLIC

ASSETS = "/assets/vendor/swagger-ui"
_BODIES = {"GenerationBody": GenerationBody}


def documents_body(name: str) -> type[Operation]:
    """An operation whose request body is this struct; the handler reads the bytes itself, so Litestar can't know."""
    fields = msgspec.json.schema(_BODIES[name])["$defs"][name]["properties"]
    properties: dict[str, Reference | Schema] = {
        field: Schema(any_of=[_schema(option) for option in schema["anyOf"]]) for field, schema in fields.items()
    }
    content = OpenAPIMediaType(schema=Schema(type=OpenAPIType.OBJECT, required=["prompt"], properties=properties))

    @dataclass
    class Documented(Operation):
        def __post_init__(self) -> None:
            self.request_body = RequestBody(content={"application/json": content}, required=True)

    return Documented


def openapi_config(version: str) -> OpenAPIConfig:
    """/docs shows the API; /docs/openapi.json is the document itself."""
    page = SwaggerRenderPlugin(
        js_url=f"{ASSETS}/swagger-ui-bundle.js",
        css_url=f"{ASSETS}/swagger-ui.css",
        standalone_preset_js_url=f"{ASSETS}/swagger-ui-standalone-preset.js",
        favicon="<link rel='icon' href='data:,'>",
        path="/",
    )
    return OpenAPIConfig(
        title="Darkroom",
        version=version,
        path="/docs",
        openapi_router=Router("/docs", route_handlers=[], opt=PUBLIC, include_in_schema=False),
        use_handler_docstrings=True,
        render_plugins=[page, JsonRenderPlugin()],
    )


def _schema(option: dict[str, Any]) -> Schema:
    return Schema(type=OpenAPIType(option["type"]))
