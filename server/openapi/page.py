"""/docs, which shows the API from our own files: no CDN. What it shows is written in `document.py`."""

from typing import Any

from litestar import Request, Router
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin

from server.identity.guard import PUBLIC
from server.openapi.document import document

ASSETS = "/assets/vendor/swagger-ui"


class _Page(SwaggerRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return super().render(request, document(request.app))


class _Json(JsonRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return super().render(request, document(request.app))


def openapi_config(version: str) -> OpenAPIConfig:
    """/docs is the page, /docs/openapi.json the document itself."""
    page = _Page(
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
        render_plugins=[page, _Json()],
    )
