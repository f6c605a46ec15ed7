"""The OpenAPI document: what Litestar knows of the routes, completed by what they tell and what befalls every route."""

from collections.abc import Iterator
from typing import Any

from litestar import Litestar
from litestar.routes import HTTPRoute

from server.openapi.json_schemas import JsonSchemas
from server.openapi.operations import Operation
from server.openapi.words import HEADERS, INTRODUCTION, TAGS
from server.schemas import ApplicationError, OpenAIError

METHODS = ("get", "head", "post", "put", "patch", "delete")


def document(app: Litestar) -> dict[str, Any]:
    """The whole document, as it is sent; written when it is first asked for."""
    if "document" not in app.state:
        app.state["document"] = _written(app)
    found: dict[str, Any] = app.state["document"]
    return found


def _written(app: Litestar) -> dict[str, Any]:
    known = app.openapi_schema.to_schema()
    found = list(operations(app))
    schemas = JsonSchemas(
        [*(shape for operation in found for shape in operation.shapes), ApplicationError, OpenAIError]
    )
    paths: dict[str, Any] = {}
    for operation in found:
        told = known["paths"][operation.path][operation.method]
        paths.setdefault(operation.path, {})[operation.method] = operation.written(told, schemas)
    return {
        "openapi": known["openapi"],
        "info": known["info"] | {"description": INTRODUCTION},
        "servers": [{"url": "/", "description": "this server"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": {path: _in_order(paths[path]) for path in sorted(paths)},
        "components": {
            "schemas": schemas.components,
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _in_order(methods: dict[str, Any]) -> dict[str, Any]:
    return {method: methods[method] for method in METHODS if method in methods}


def operations(app: Litestar) -> Iterator[Operation]:
    """Every method of every route that the document shows."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in route.route_handler_map.items():
                if handler.resolve_include_in_schema() and method != "OPTIONS":
                    yield Operation(route.path_format, str(method).lower(), handler)
