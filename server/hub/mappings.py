"""What an event of the hub asks for: the `[hub."TYPE"]` tables of models.toml, as fields of a generation."""

import re
from collections.abc import Mapping
from typing import Any

from pipelines.catalog import Catalog
from pipelines.errors import CatalogError, InvalidRequest
from pipelines.wording import nearest
from server.errors import MissingField
from server.generation import order_of, read_body
from server.identity.caller import LOCAL

REQUESTED = "generation.requested"
"""The event whose data is the body of a generation itself; no table says more of it."""

MAPPED = ("character.created", "character.updated", "campaign.location_added")

TEMPLATES = ("prompt", "negative_prompt", "session_id", "user")
"""Fields of a table in which {name} stands for a field of the event's data; {name?} for one that may be missing."""

# Names and nothing else: no attribute, call, index or format can be written. What is put in is not looked at again.
_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)(\?)?\}")


def check_mappings(catalog: Catalog) -> None:
    """See that every table asks for something that can be made.

    Raises:
        CatalogError: with the file, the table, the field and its rule.
    """
    for type, table in catalog.hub.items():
        place = f"{catalog.file}: hub.{type}"
        if type not in MAPPED:
            raise CatalogError(f"{place}: it is no event of the hub that a table can map{nearest(type, MAPPED)}")
        if not isinstance(table, dict):
            raise CatalogError(f'{place}: write it as a table, [hub."{type}"].')
        try:
            order_of(read_body(table), catalog, LOCAL)
        except InvalidRequest as error:
            raise CatalogError(f"{place}: {error}") from error


def fields_of(table: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a generation that a table makes of an event's data.

    Raises:
        MissingField, InvalidRequest: naming the field of the data.
    """
    return {name: _filled(value, data) if name in TEMPLATES else value for name, value in table.items()}


def _filled(template: str, data: Mapping[str, Any]) -> str:
    kept = _PLACE.sub(lambda place: place[0] if not place[2] or _text(data, place[1], optional=True) else "", template)
    if kept != template:
        kept = _tidied(kept)
    return _PLACE.sub(lambda place: _text(data, place[1], optional=place[2] is not None), kept)


def _tidied(template: str) -> str:
    """A template without the commas and blanks that stood around places which went. Nothing is put in yet."""
    template = re.sub(r" *,(?:\s*,)+", ",", template)
    return re.sub(r" +(?=[ ,])", "", template).strip(", ")


def _text(data: Mapping[str, Any], path: str, *, optional: bool) -> str:
    """The text of one field; a dot leads into an object."""
    value: Any = data
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if value is None and not optional:
        raise MissingField(f"data.{path}", f"data.{path} is required by this server's table for the event.")
    if isinstance(value, list):
        return ", ".join(filter(None, (_plain(one, path) for one in value)))
    return _plain(value, path)


def _plain(value: Any, path: str) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case bool() | int() | float():
            return str(value).lower()
    raise InvalidRequest(f"data.{path}", f"data.{path} must be text, a number or a list of such.")
