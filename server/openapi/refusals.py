"""What can go wrong on a route, as responses of the OpenAPI document; the statuses and codes are `server.answers`'."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipelines.errors import InvalidRequest
from server.answers import FRAMEWORK, UNFORESEEN, Answer, answer_of
from server.errors import BodyTooLarge, CrossSite, Forbidden, RequestTooSlow, Unauthenticated, WrongMediaType
from server.schemas import ApplicationError, OpenAIError
from storage.errors import DatabaseBusy, DatabaseDamaged, DiskFault, DiskFull, NotFound

EVERY_ROUTE = (InvalidRequest,)
"""A malformed Host header is one."""
WITH_CALLER = (Unauthenticated, Forbidden, DatabaseBusy, DatabaseDamaged, DiskFault)
UNSAFE = (CrossSite, DiskFull)
WITH_BODY = (RequestTooSlow, BodyTooLarge, WrongMediaType)
WITH_PARAMETERS = (NotFound,)


@dataclass(frozen=True)
class Refusal:
    """One case of failure, as a client meets it."""

    answer: Answer
    meaning: str

    @classmethod
    def of(cls, kind: type[Exception]) -> "Refusal":
        meaning = (inspect.getdoc(kind) or "").partition("\n\n")[0]
        return cls(answer_of(kind) or UNFORESEEN, " ".join(meaning.split()))


FORESEEN_BY_NOBODY = Refusal(UNFORESEEN, "Unforeseen; the server's log tells more.")
FRAMEWORK_REFUSALS = [Refusal(Answer(status, code), message) for status, (code, message) in FRAMEWORK.items()]


def refusals(kinds: Iterable[type[Exception]]) -> dict[int, list[Refusal]]:
    """By status, what these exceptions come to, with what the framework itself refuses under the same statuses."""
    found: dict[int, list[Refusal]] = {}
    for refusal in [*map(Refusal.of, dict.fromkeys(kinds)), FORESEEN_BY_NOBODY]:
        found.setdefault(refusal.answer.status, []).append(refusal)
    for refusal in FRAMEWORK_REFUSALS:
        if refusal.answer.status in found:
            found[refusal.answer.status].append(refusal)
    return found


def described(refusals: list[Refusal], schema: dict[str, Any]) -> dict[str, Any]:
    """One response for all refusals of a status; `schema` is the error's shape in its dialect."""
    codes: dict[str, str] = {}
    for refusal in refusals:
        codes.setdefault(refusal.answer.code, refusal.meaning)
    known = {"properties": {"error": {"properties": {"code": {"enum": list(codes)}}}}}
    return {
        "description": "\n".join(f"- `{code}`: {meaning}" for code, meaning in codes.items()),
        "content": {"application/json": {"schema": {"allOf": [schema, known]}}},
    }


def headers_of(refusals: list[Refusal]) -> list[str]:
    """The headers that may come with them."""
    status = refusals[0].answer.status
    again = any(refusal.answer.retry for refusal in refusals)
    final = any(not refusal.answer.retry for refusal in refusals)
    names = ["Retry-After"] if status in (429, 503) and again else []
    return names + (["x-should-retry"] if final and (status == 409 or status >= 500) else [])


def error_shape(path: str) -> Any:
    """The shape of errors in the dialect of a path."""
    return OpenAIError if path.startswith("/v1/") else ApplicationError
