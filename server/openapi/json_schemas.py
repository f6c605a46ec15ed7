"""The shapes of bodies and answers as JSON Schema."""

from collections.abc import Iterable
from inspect import cleandoc
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import msgspec


class JsonSchemas:
    """Shapes by their Python types; what they share becomes a component of the document."""

    def __init__(self, shapes: Iterable[Any]) -> None:
        """Raises ValueError for two shapes of one name, which msgspec tells apart by their modules."""
        self._shapes = list(dict.fromkeys(shapes))
        schemas, components = msgspec.json.schema_components(self._shapes, ref_template="#/components/schemas/{name}")
        if alike := [name for name in components if "." in name]:
            raise ValueError(f"Shapes of one name need names of their own: {', '.join(alike)}.")
        self._schemas = list(schemas)
        orders = {name: order for shape in self._shapes for name, order in _orders(shape)}
        self.components = {
            name: _tidy(schema, orders.get(schema.get("title", "").partition("[")[0]))
            for name, schema in sorted(components.items())
        }

    def of(self, shape: Any) -> dict[str, Any]:
        """The schema of one of these shapes, which is a reference where it has a name."""
        return self._schemas[self._shapes.index(shape)]


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema as Litestar writes it: in an address there is no null, and bounds are whole numbers."""
    schema = dict(schema)
    match schema.pop("oneOf", None):
        case [option, {"type": "null"}]:
            schema = option | schema
    return {name: int(value) if isinstance(value, float) else value for name, value in schema.items()}


def _orders(shape: Any) -> Iterable[tuple[str, list[str]]]:
    """The names of all dictionaries in a shape, and the order of their fields: msgspec sorts them by the alphabet."""
    for inner in get_args(shape):
        yield from _orders(inner)
    kind = get_origin(shape) or shape
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        yield kind.__name__, list(hints)
        for hint in hints.values():
            yield from _orders(hint)


def _tidy(schema: Any, order: list[str] | None = None) -> Any:
    """A schema in the order of its fields, without nulls as defaults, and with `T | None` as two types of one value."""
    if isinstance(schema, list):
        return [_tidy(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {name: _tidy(value) for name, value in schema.items() if (name, value) != ("default", None)}
    if isinstance(tidy.get("description"), str):
        tidy["description"] = cleandoc(tidy["description"])
    if order is not None:
        tidy["properties"] = {name: tidy["properties"][name] for name in order}
    match tidy.get("anyOf"):
        case [{"type": str(kind), **rest}, {"type": "null"}] if "enum" not in rest:
            del tidy["anyOf"]
            return {"type": [kind, "null"], **rest, **tidy}
    return tidy
