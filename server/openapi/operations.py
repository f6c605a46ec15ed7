"""One operation of the OpenAPI document: a method of a route, with every answer that it can give."""

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from types import NoneType
from typing import Any, get_args, get_origin

from litestar import Response
from litestar.handlers import HTTPRouteHandler

from server.client_key import HEADER, MAX_CHARACTERS
from server.cross_site import SAFE_METHODS
from server.identity.guard import Access, access_of
from server.openapi import refusals
from server.openapi.json_schemas import JsonSchemas, without_null
from server.openapi.words import HEADERS, PARAMETERS
from server.schemas import Documented, Raw

JSON = "application/json"
TEXT = {"type": "string"}
HEADER_SCHEMAS = {HEADER: TEXT | {"minLength": 1, "maxLength": MAX_CHARACTERS}}


@dataclass(frozen=True)
class Operation:
    """A method of a route."""

    path: str
    method: str
    handler: HTTPRouteHandler

    @property
    def documented(self) -> Documented:
        """What the route tells of itself."""
        found: Documented = self.handler.opt.get("documents", Documented())
        return found

    @property
    def name(self) -> str:
        """Of the controller and its function, as in `jobs_cancel`; of a second path or method, with what is its own."""
        names = self.handler.fn.__qualname__.split(".")
        words = [re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name).lower() for name in names]
        first = min((re.sub(r":\w+}", "}", path) for path in self.handler.paths), key=len)
        if not self.path.endswith(first.rstrip("/")):
            words.append(self.path.rsplit("/", 1)[-1])
        if self.method != "get" and len(self.handler.http_methods) > 1:
            words.append(self.method)
        return "_".join(dict.fromkeys(words))

    @property
    def public(self) -> bool:
        """Whether nobody is asked who they are."""
        return access_of(self.handler) is Access.PUBLIC

    @property
    def answers(self) -> dict[int, Any]:
        """By status, the shapes of what it answers when all is well."""
        kind = self.handler.parsed_fn_signature.return_type.annotation
        shape = get_args(kind)[0] if get_origin(kind) is Response else kind
        if shape is NoneType:
            shape = Raw("Done; there is nothing to tell.")
        return {self.handler.status_code: shape} | dict(self.documented.answers)

    @property
    def shapes(self) -> list[Any]:
        """Every shape that needs a schema."""
        found = [self.documented.body, *self.answers.values(), refusals.error_shape(self.path)]
        return [shape for shape in found if shape is not None and not isinstance(shape, Raw)]

    @property
    def refusals(self) -> dict[int, list[refusals.Refusal]]:
        """By status, everything that can go wrong."""
        kinds: list[type[Exception]] = [*refusals.EVERY_ROUTE, *self.documented.raises]
        kinds += () if self.public else refusals.WITH_CALLER
        kinds += () if self.method.upper() in SAFE_METHODS else refusals.UNSAFE
        kinds += () if self.documented.body is None else refusals.WITH_BODY
        kinds += refusals.WITH_PARAMETERS if "{" in self.path else ()
        return {status: cases for status, cases in refusals.refusals(kinds).items() if status not in self.answers}

    def written(self, known: dict[str, Any], schemas: JsonSchemas) -> dict[str, Any]:
        """The operation as the document has it; `known` is what Litestar makes of it."""
        story = " ".join((inspect.getdoc(self.handler.fn) or "").split())
        summary = re.split(r"(?<=\.)\s", story, maxsplit=1)[0]
        operation: dict[str, Any] = {
            "tags": known["tags"],
            "summary": summary.removesuffix(".").replace("`", ""),
            "operationId": self.name,
        }
        if summary != story:
            operation["description"] = story.removeprefix(summary).strip()
        parameters = [*map(_parameter, known.get("parameters", ())), *map(_header, self.documented.reads)]
        if parameters:
            operation["parameters"] = parameters
        if self.documented.body is not None:
            content = _content(self.documented.body, schemas)
            if self.documented.example is not None:
                content[JSON]["example"] = self.documented.example
            operation["requestBody"] = {"required": True, "content": content}
        operation["responses"] = self._responses(schemas)
        operation["security"] = [] if self.public else [{"bearer": []}]
        return operation

    def _responses(self, schemas: JsonSchemas) -> dict[str, Any]:
        error = schemas.of(refusals.error_shape(self.path))
        found = {}
        for status, shape in self.answers.items():
            names = self.documented.sends.get(status, ())
            found[str(status)] = _answer(status, shape, schemas) | {"headers": _headers(names)}
        for status, cases in self.refusals.items():
            headers = _headers(refusals.headers_of(cases))
            found[str(status)] = refusals.described(cases, error) | {"headers": headers}
        if self.method == "head":
            for response in found.values():
                response.pop("content", None)
        return dict(sorted(found.items()))


def _answer(status: int, shape: Any, schemas: JsonSchemas) -> dict[str, Any]:
    named = get_args(shape)[0] if get_args(shape) else shape
    meaning = shape.meaning if isinstance(shape, Raw) else inspect.getdoc(named) or HTTPStatus(status).phrase
    content = _content(shape, schemas)
    return {"description": meaning} | ({"content": content} if content else {})


def _content(shape: Any, schemas: JsonSchemas) -> dict[str, Any]:
    if isinstance(shape, Raw):
        return {kind: {} for kind in shape.media_types}
    return {JSON: {"schema": schemas.of(shape)}}


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("x-request-id", *names)}


def _header(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": HEADERS[name], "schema": HEADER_SCHEMAS.get(name, TEXT)}


def _parameter(known: dict[str, Any]) -> dict[str, Any]:
    """One of Litestar's, without what goes without saying."""
    told = {"name": known["name"], "in": known["in"], "description": PARAMETERS.get(known["name"])}
    told |= known | {"schema": without_null(known["schema"])}
    return {name: value for name, value in told.items() if value not in (None, False)}
