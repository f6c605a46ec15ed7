"""Decoding one table of TOML strictly, with errors that name the place, the key and the nearest that exists."""

import re
from enum import Enum
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

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
        allowed = _allowed(kind, key[1]) if key else []
        raise CatalogError(f"{place}{inside}: {mistyped(message.split(' - at ')[0], 'a table', allowed)}.") from error


def _allowed(kind: type[msgspec.Struct], key: str) -> list[Any]:
    """The values that a key of a table may have, where they are listed."""
    hint = get_type_hints(kind).get(key)
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    found: list[Any] = []
    for option in options:
        if get_origin(option) is Literal:
            found += get_args(option)
        elif isinstance(option, type) and issubclass(option, Enum):
            found += [member.value for member in option]
        elif option is bool:
            found += [True, False]
    return found
