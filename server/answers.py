"""What a client is told when something fails: one table from exception class to status and code, one shape a dialect.

| prefix | shape |
| --- | --- |
| /v1 | OpenAI's `{"error": {message, type, param, code}}` |
| elsewhere | `{"success": false, "error": {code, message, field?}}` |
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal
from uuid import uuid4

from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import Scope

from pipelines.errors import (
    CheckpointError,
    DeviceLost,
    ImageFailed,
    ImageTooLarge,
    InvalidRequest,
    NotANumber,
    UnknownModel,
)
from pipelines.wording import mistyped
from server.errors import (
    BodyTooLarge,
    Cancelled,
    CrossSite,
    EngineLost,
    Forbidden,
    Interrupted,
    JobFailed,
    MissingField,
    ModelUnavailable,
    NoPreview,
    RequestTooSlow,
    Unauthenticated,
    UnknownField,
    UnsupportedField,
    WrongMediaType,
)
from server.scheduling.outlook import MAX_RETRY_AFTER
from server.scheduling.queue import QueueFull
from server.schemas import ApplicationError, Fault, OpenAIError
from storage.errors import (
    DatabaseBusy,
    DatabaseDamaged,
    DiskFault,
    DiskFull,
    IllegalTransition,
    JobEnded,
    KeyReused,
    LimitReached,
    MetadataTooLarge,
    NotEnoughCredit,
    NotFound,
    ReferenceReused,
)
from storage.records import ENGINE_LOST

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """The status, the code and whether trying the same again can help."""

    status: int
    code: str
    retry: bool = False
    says: str | None = None
    """In place of the exception's own message, where that may tell of the machine."""


# The first class of an exception's own ancestry that stands here decides.
ANSWERS: dict[type[Exception], Answer] = {
    InvalidRequest: Answer(400, "invalid_value"),
    MissingField: Answer(400, "missing_required_parameter"),
    UnknownField: Answer(400, "unknown_parameter"),
    UnsupportedField: Answer(400, "unsupported_parameter"),
    MetadataTooLarge: Answer(400, "invalid_value"),
    Unauthenticated: Answer(401, "invalid_api_key"),
    Forbidden: Answer(403, "forbidden"),
    CrossSite: Answer(403, "cross_site"),
    UnknownModel: Answer(404, "model_not_found"),
    NotFound: Answer(404, "not_found"),
    NoPreview: Answer(404, "not_found"),
    Cancelled: Answer(409, "cancelled"),
    IllegalTransition: Answer(409, "illegal_transition"),
    JobEnded: Answer(409, "job_ended"),
    RequestTooSlow: Answer(408, "request_timeout", retry=True),
    BodyTooLarge: Answer(413, "request_too_large"),
    WrongMediaType: Answer(415, "unsupported_media_type"),
    KeyReused: Answer(422, "idempotency_key_reused"),
    ReferenceReused: Answer(422, "idempotency_key_reused"),
    LimitReached: Answer(429, "rate_limit_exceeded", retry=True),
    NotEnoughCredit: Answer(429, "insufficient_quota"),
    ImageFailed: Answer(
        500, "generation_failed", says="The picture failed while it was computed; the server's log says why."
    ),
    NotANumber: Answer(500, "generation_failed"),
    ImageTooLarge: Answer(500, "image_too_large"),
    DatabaseDamaged: Answer(500, "database_damaged"),
    ModelUnavailable: Answer(503, "model_unavailable"),
    QueueFull: Answer(503, "queue_full", retry=True),
    Interrupted: Answer(503, "interrupted", retry=True),
    EngineLost: Answer(503, ENGINE_LOST),
    DeviceLost: Answer(503, ENGINE_LOST, says="The device was lost; the server's log says why."),
    DatabaseBusy: Answer(503, "database_busy", retry=True),
    DiskFull: Answer(503, "disk_full", retry=True),
    DiskFault: Answer(503, "disk_fault"),
}

# What the framework itself refuses, by status: its own words help nobody.
FRAMEWORK = {
    400: ("invalid_request", "The request cannot be understood."),
    404: ("not_found", "Nothing is served under this address; /docs lists what is."),
    405: ("method_not_allowed", "This address does not take this method; the Allow header lists those it takes."),
    413: ("request_too_large", "The request is too large."),
}
# What OpenAI calls an error's type where it is not told by the status.
_KINDS: dict[str, Literal["requests", "insufficient_quota"]] = {
    "rate_limit_exceeded": "requests",
    "insufficient_quota": "insufficient_quota",
}
UNFORESEEN = Answer(500, "server_error", retry=True)


def request_id(scope: Scope) -> str:
    """The id by which a request is found in the log; its answer carries the same one."""
    found: str = scope["state"].setdefault("request_id", uuid4().hex)
    return found


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer any exception in the dialect of the path it befell."""
    if isinstance(error, ValidationException):
        error = _invalid(error)
    answer, message = explain(error)
    _log(request, answer, error)
    field = error.field if isinstance(error, InvalidRequest) else None
    shape: Callable[[Answer, str, str | None], OpenAIError | ApplicationError]
    shape = _openai if request.scope["path"].split("/")[1:2] == ["v1"] else application_shape
    return Response(shape(answer, message, field), status_code=answer.status, headers=_headers(answer, error))


def explain(error: Exception) -> tuple[Answer, str]:
    """The answer to an exception and the message a client may read; an unforeseen one tells nothing of itself."""
    if isinstance(error, JobFailed):
        return next((answer for answer in ANSWERS.values() if answer.code == error.code), UNFORESEEN), str(error)
    if (answer := answer_of(type(error))) is not None:
        return answer, answer.says or str(error)
    if isinstance(error, HTTPException) and error.status_code < 500:
        code, message = FRAMEWORK.get(error.status_code, FRAMEWORK[400])
        return Answer(error.status_code, code), message
    return UNFORESEEN, "Something went wrong on the server; its log has the details under this request's id."


def answer_of(kind: type[BaseException]) -> Answer | None:
    """The answer that an exception of this class has, if it is foreseen."""
    return next((ANSWERS[ancestor] for ancestor in kind.__mro__ if ancestor in ANSWERS), None)


def public(error: BaseException, model: str) -> Exception:
    """Why an image failed, as its client may hear it."""
    if isinstance(error, CheckpointError):
        return ModelUnavailable(model)
    return error if isinstance(error, Exception) else Interrupted()


def _log(request: Request[Any, Any, Any], answer: Answer, error: Exception) -> None:
    """One line for each request that failed: with the traceback, unless it was foreseen and passes by itself.

    Of a refusal without its reason, which may quote the client: nothing of a prompt belongs in the log. Of a picture or
    a model that failed likewise, for the scheduler has told why.
    """
    refused, told = answer.status < 500, isinstance(error, ImageFailed | ModelUnavailable)
    if refused or told:
        level, how = (logging.INFO, "refused") if refused else (logging.WARNING, "failed")
        log.log(level, "request %s: %s %r %s: %d %s", *_named(request), how, answer.status, answer.code)
        return
    passing = (answer.retry and answer is not UNFORESEEN) or answer.code == ENGINE_LOST
    log.log(
        logging.WARNING if passing else logging.ERROR,
        "request %s: %s %r failed: %s",
        *_named(request),
        error,
        exc_info=None if passing else error,
    )


def _named(request: Request[Any, Any, Any]) -> tuple[str, str, str]:
    """What the log calls a request: its id, method and path, never its query."""
    return request_id(request.scope), request.method, request.scope["path"]


def _invalid(error: ValidationException) -> InvalidRequest:
    """Litestar's complaint about a query or path parameter, as one about a field."""
    first = error.extra[0] if isinstance(error.extra, list) and error.extra else {}
    field = str(first.get("key", "query"))
    return InvalidRequest(field, f"{field}: {mistyped(first.get('message', 'it is not valid'))}.")


def _headers(answer: Answer, error: Exception) -> dict[str, str]:
    headers = {}
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(error.retry_after)
    elif answer.status == 503 and answer.retry:
        headers["Retry-After"] = "5"
    elif answer.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, LimitReached) and error.seconds is not None:
        headers["Retry-After"] = str(max(1, min(MAX_RETRY_AFTER, ceil(error.seconds))))
    if (answer.status >= 500 or answer.status in (409, 429)) and _in_vain(answer, error):
        # OpenAI's clients repeat these twice unless told that it is no use.
        headers["x-should-retry"] = "false"
    if isinstance(error, HTTPException):
        headers |= {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return headers


def _in_vain(answer: Answer, error: Exception) -> bool:
    """Whether the same again would only fail again, even as late as Retry-After can say."""
    if isinstance(error, LimitReached):
        return error.seconds is None or error.seconds > MAX_RETRY_AFTER
    return not answer.retry


def _openai(answer: Answer, message: str, field: str | None) -> OpenAIError:
    who: Literal["invalid_request_error", "server_error"] = (
        "invalid_request_error" if answer.status < 500 else "server_error"
    )
    return {"error": {"message": message, "type": _KINDS.get(answer.code, who), "param": field, "code": answer.code}}


def application_shape(answer: Answer, message: str, field: str | None) -> ApplicationError:
    """An error as the application's own routes tell it."""
    fault: Fault = {"code": answer.code, "message": message}
    if field:
        fault["field"] = field
    return {"success": False, "error": fault}
