"""Reading a request's body: JSON only, bounded in size and time, and never an error 500 whatever the bytes."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from pipelines.errors import InvalidRequest
from pipelines.wording import mistyped, nearest
from server.disconnect import ClientGone
from server.errors import BodyTooLarge, MissingField, RequestTooSlow, UnknownField, WrongMediaType

T = TypeVar("T", bound=msgspec.Struct)

NO_SPELLING: Mapping[str, str] = MappingProxyType({})

MAX_JSON_BYTES = 1024 * 1024
SMALL_JSON_BYTES = 16 * 1024
"""Where a body has a few short fields."""

MAX_BODY_SECONDS = 30.0
"""uvicorn itself waits for ever, so a thousand clients that never finish would hold a thousand connections."""

JSON = "application/json"


def media_type(request: Request[Any, Any, Any]) -> str:
    """What the body is declared as, without parameters."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def read_json(
    request: Request[Any, Any, Any],
    limit: int = MAX_JSON_BYTES,
    patience: float = MAX_BODY_SECONDS,
    *,
    allowed: str = JSON,
) -> dict[str, Any]:
    """The body as a JSON object.

    The declared type is insisted on: a page on another site may send `text/plain` here without asking, but not
    `application/json`, nor any other type that a route may allow.

    Raises:
        WrongMediaType, BodyTooLarge, RequestTooSlow, InvalidRequest, ClientGone.
    """
    if media_type(request) != allowed:
        raise WrongMediaType(f"Send the body as JSON with the header Content-Type: {allowed}.")
    try:
        async with asyncio.timeout(patience):
            body = await _read(request, limit)
    except TimeoutError as error:
        raise RequestTooSlow(f"The body did not arrive within {patience:g} seconds.") from error
    if not body:
        raise InvalidRequest("body", 'The body is empty; send a JSON object such as {"prompt": "a boat"}.')
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("body", f"The body is not valid JSON: {str(error).split(' - at ')[0]}.") from error
    if not isinstance(data, dict):
        raise InvalidRequest("body", "The body must be a JSON object.")
    return data


async def read_struct(request: Request[Any, Any, Any], kind: type[T], limit: int = MAX_JSON_BYTES) -> T:
    """The body as a struct. Raises what `to_struct` and `read_json` raise."""
    return to_struct(await read_json(request, limit), kind)


def to_struct(data: dict[str, Any], kind: type[T], spelling: Mapping[str, str] = NO_SPELLING) -> T:
    """The fields of a body, by their types.

    Args:
        data: the fields; one that is null counts as absent.
        kind: the struct they make.
        spelling: how the client wrote a field, where that differs from its name.

    Raises:
        MissingField, UnknownField, InvalidRequest: naming the field as the client wrote it.
    """
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    given = {name: value for name, value in data.items() if value is not None}
    for name in data:
        if name not in known:
            raise UnknownField(name[:80], f"Unknown field {name[:80]!r}{nearest(name[:80], known)}")
    for name in known:
        if known[name].required and name not in given:
            raise MissingField(name, f"{name} is required.")
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        complaint, _, place = str(error).partition(" - at `$.")
        place = place.rstrip("`")
        name = place.partition("[")[0]
        field = spelling.get(name, name)
        raise InvalidRequest(field, f"{field}{place.removeprefix(name)} {mistyped(complaint)}.") from error


async def _read(request: Request[Any, Any, Any], limit: int) -> bytes:
    too_large = BodyTooLarge(f"The body is larger than {limit} bytes.")
    if (request.content_length or 0) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except InternalServerException as error:  # Litestar's name for a client that left half-way
        raise ClientGone("The client hung up.") from error
    return bytes(body)
