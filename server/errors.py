"""What a client is told when something fails: one table from exception class to status and code, one shape a dialect.

| prefix | shape |
| --- | --- |
| /v1 | OpenAI's `{"error": {message, type, param, code}}` |
| elsewhere | `{"success": false, "error": {code, message, field?}}` |
"""

import logging
from dataclasses import dataclass
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException

from pipelines.errors import CheckpointError, ImageFailed, ImageTooLarge, InvalidRequest, UnknownModel
from server.scheduling.queue import QueueFull
from storage.errors import DatabaseBusy, DiskFault, DiskFull, MetadataTooLarge, NotFound

log = logging.getLogger(__name__)


class MissingField(InvalidRequest):
    """A required field was not given."""


class UnknownField(InvalidRequest):
    """A field that this route does not know."""


class UnsupportedField(InvalidRequest):
    """A field of the API that this server cannot honour yet."""


class WrongMediaType(Exception):
    """A body that is not declared as JSON."""


class BodyTooLarge(Exception):
    """A body beyond the route's limit."""


@dataclass(frozen=True)
class Answer:
    """The status, the code and whether trying the same again can help."""

    status: int
    code: str
    retry: bool = False


# The first class of an exception's own ancestry that stands here decides.
ANSWERS: dict[type[Exception], Answer] = {
    InvalidRequest: Answer(400, "invalid_value"),
    MissingField: Answer(400, "missing_required_parameter"),
    UnknownField: Answer(400, "unknown_parameter"),
    UnsupportedField: Answer(400, "unsupported_parameter"),
    MetadataTooLarge: Answer(400, "invalid_value"),
    UnknownModel: Answer(404, "model_not_found"),
    NotFound: Answer(404, "not_found"),
    BodyTooLarge: Answer(413, "request_too_large"),
    WrongMediaType: Answer(415, "unsupported_media_type"),
    ImageFailed: Answer(500, "generation_failed"),
    ImageTooLarge: Answer(500, "image_too_large"),
    CheckpointError: Answer(503, "model_unavailable"),
    QueueFull: Answer(503, "queue_full", retry=True),
    DatabaseBusy: Answer(503, "database_busy", retry=True),
    DiskFull: Answer(503, "disk_full", retry=True),
    DiskFault: Answer(503, "disk_fault"),
}

_HTTP_CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
_UNFORESEEN = "Something went wrong on the server; its log has the details under this request's id."


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer any exception in the dialect of the path it befell."""
    answer, message = explain(error)
    if answer.status >= 500 and not answer.retry:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    field = error.field if isinstance(error, InvalidRequest) else None
    shape = _openai if request.url.path.startswith("/v1") else _application
    return Response(shape(answer, message, field), status_code=answer.status, headers=_headers(answer, error))


def explain(error: Exception) -> tuple[Answer, str]:
    """The answer to an exception and the message a client may read; an unforeseen one tells nothing of itself."""
    for ancestor in type(error).__mro__:
        if ancestor in ANSWERS:
            return ANSWERS[ancestor], str(error)
    if isinstance(error, HTTPException):
        code = _HTTP_CODES.get(error.status_code, "invalid_request" if error.status_code < 500 else "server_error")
        return Answer(error.status_code, code), error.detail
    return Answer(500, "server_error", retry=True), _UNFORESEEN


def _headers(answer: Answer, error: Exception) -> dict[str, str]:
    headers = {}
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(error.retry_after)
    elif answer.status == 503 and answer.retry:
        headers["Retry-After"] = "5"
    if answer.status >= 500 and not answer.retry:
        # OpenAI's clients repeat every 5xx twice unless told that it is no use.
        headers["x-should-retry"] = "false"
    if isinstance(error, HTTPException) and "allow" in (error.headers or {}):
        headers["Allow"] = dict(error.headers or {})["allow"]
    return headers


def _openai(answer: Answer, message: str, field: str | None) -> dict[str, Any]:
    kind = "invalid_request_error" if answer.status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": field, "code": answer.code}}


def _application(answer: Answer, message: str, field: str | None) -> dict[str, Any]:
    error = {"code": answer.code, "message": message}
    return {"success": False, "error": error | ({"field": field} if field else {})}
