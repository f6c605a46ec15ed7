"""Idempotency-Key: what a client calls a request that it may have to send twice."""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from pipelines.errors import InvalidRequest
from storage.records import ClientKey

HEADER = "Idempotency-Key"
MAX_CHARACTERS = 255


def client_key(headers: Mapping[str, str], body: Mapping[str, Any]) -> ClientKey | None:
    """The key a request carries, if any, with a digest of what it asks for.

    Raises:
        InvalidRequest: the key is empty or too long.
    """
    key = headers.get(HEADER.lower())
    if key is None:
        return None
    if not 0 < len(key) <= MAX_CHARACTERS:
        raise InvalidRequest(HEADER, f"{HEADER} must have 1 to {MAX_CHARACTERS} characters, not {len(key)}.")
    return ClientKey(key, hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest())
