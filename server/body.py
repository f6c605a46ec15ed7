"""Reading a request's body: JSON only, bounded, and never an error 500 whatever the bytes."""

from typing import Any

import msgspec
from litestar import Request

from pipelines.errors import InvalidRequest
from server.errors import BodyTooLarge, WrongMediaType

MAX_JSON_BYTES = 1024 * 1024


async def read_json(request: Request[Any, Any, Any], limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The body as a JSON object.

    The declared type is insisted on: a page on another site may send `text/plain` here without asking, but not
    `application/json`.

    Raises:
        WrongMediaType, BodyTooLarge, InvalidRequest.
    """
    declared = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if declared != "application/json":
        raise WrongMediaType("Send the body as JSON with the header Content-Type: application/json.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLarge(f"The body is larger than {limit} bytes.")
    try:
        data = msgspec.json.decode(bytes(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("body", f"The body is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise InvalidRequest("body", "The body must be a JSON object.")
    return data
