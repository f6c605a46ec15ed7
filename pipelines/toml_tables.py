"""Decoding one table of TOML strictly, with errors that name the place, the key and the nearest that exists."""

import re
from typing import Any, TypeVar

import msgspec

from pipelines.errors import CatalogError
from pipelines.wording import mistyped, nearest

_Table = TypeVar("_Table", bound=msgspec.Struct)


def convert(data: Any, kind: type[_Table], place: str) -> _Table:
    """Decode one table; the message gives the key and, for an unknown one, the nearest that exists.

    Raises:
        CatalogError: an unknown key, a missing one, or a value of another type.
    """
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        if unknown := re.search(r"unknown field `([^`]+)`", message):
            hint = nearest(unknown[1], kind.__struct_fields__)
            raise CatalogError(f"{place}: unknown key {unknown[1]!r}{hint}") from error
        key = re.search(r" - at `\$\.([^`]*)`", message)
        inside = f"{'.' if ': ' in place else ': '}{key[1]}" if key else ""
        raise CatalogError(f"{place}{inside}: {mistyped(message.split(' - at ')[0], 'a table')}.") from error
