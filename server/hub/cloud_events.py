"""CloudEvents 1.0 as they arrive over HTTP, structured or binary: https://github.com/cloudevents/spec"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import msgspec
from litestar import Request

from pipelines.errors import InvalidRequest
from server.body import JSON, media_type, read_json
from server.errors import MissingField, WrongMediaType
from storage.records import ClientKey

STRUCTURED = "application/cloudevents+json"
PREFIX = "ce-"
MAX_CHARACTERS = 255
REQUIRED = ("specversion", "id", "source", "type")


@dataclass(frozen=True)
class CloudEvent:
    """An event that somebody sent. Source and id together name it for ever."""

    id: str
    source: str
    type: str
    data: dict[str, Any]

    @property
    def key(self) -> ClientKey:
        """What makes the same event, sent again, the same request. Neither part may hold the newline between them."""
        asked = msgspec.json.encode([self.type, self.data], order="sorted")
        told = f"The id {self.id[:80]!r} of the source {self.source[:80]!r}"
        return ClientKey(f"{self.source}\n{self.id}", hashlib.sha256(asked).hexdigest(), told)


async def read_event(request: Request[Any, Any, Any]) -> CloudEvent:
    """Read an event in either mode. Attributes that nobody needs here are left alone, as the specification asks.

    Raises:
        MissingField, InvalidRequest: naming the attribute.
        WrongMediaType: saying how the event is to be sent; and what `read_json` raises.
    """
    declared = media_type(request)
    if declared not in (STRUCTURED, JSON):
        raise WrongMediaType(f"Send one event as {STRUCTURED}, or as {JSON} with its attributes in {PREFIX} headers.")
    if declared == STRUCTURED:
        attributes = await read_json(request, allowed=STRUCTURED)
        if "data_base64" in attributes or _other_type(attributes.get("datacontenttype")):
            raise InvalidRequest("datacontenttype", f"datacontenttype: send the data as {JSON}.")
        return _event(attributes, attributes.get("data"))
    attributes = _headers(request.headers)
    data = await read_json(request)
    if not attributes and "specversion" in data:
        raise WrongMediaType(f"The body is a whole event: send it with the header Content-Type: {STRUCTURED}.")
    return _event(attributes, data)


def _headers(headers: Mapping[str, str]) -> dict[str, Any]:
    """A binary event's attributes; their values are percent-encoded where they leave printable ASCII."""
    found = {name.lower(): value for name, value in headers.items()}
    return {name.removeprefix(PREFIX): unquote(value) for name, value in found.items() if name.startswith(PREFIX)}


def _event(attributes: Mapping[str, Any], data: Any) -> CloudEvent:
    version, id, source, type = (_text(attributes, name) for name in REQUIRED)
    if version != "1.0":
        raise InvalidRequest("specversion", f"specversion must be 1.0, not {version[:24]!r}.")
    if not isinstance(data, dict):
        raise InvalidRequest("data", "data must be an object.")
    return CloudEvent(id, source, type, data)


def _text(attributes: Mapping[str, Any], name: str) -> str:
    value = attributes.get(name)
    if value is None:
        raise MissingField(name, f"{name} is required: as a field beside data, or as the header {PREFIX}{name}.")
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CHARACTERS or not value.isprintable():
        raise InvalidRequest(name, f"{name} must be a string of 1 to {MAX_CHARACTERS} printable characters.")
    return value


def _other_type(declared: Any) -> bool:
    return declared is not None and declared != JSON
