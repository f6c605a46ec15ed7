"""Words for what is wrong with input: the name that was probably meant, and types as JSON and TOML call them."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
}
_BOUNDS = {">=": "of at least", "<=": "of at most"}
_UNLISTED = re.compile(r"Invalid enum value (.+)", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(\w+)(?: \| null)?`(?: ([<>]=) (\S+))?(?:, got `(\w+)`)?")


def nearest(written: str, known: Iterable[str]) -> str:
    """From the semicolon to the end of the sentence, its mark included. Capital letters make no difference."""
    names = list(known)
    folded = {name.casefold(): name for name in names}
    near = get_close_matches(written.casefold(), folded, n=1)
    return f"; did you mean {folded[near[0]]!r}?" if near else f"; known: {', '.join(names)}."


def _listed(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value).lower()


def mistyped(complaint: str, table: str = "an object", allowed: Sequence[object] = ()) -> str:
    """msgspec's complaint about a value, such as "Expected `int | null`, got `str`", without Python's names for types.

    Args:
        table: what the format calls a collection of names and values.
        allowed: the values that there are, where only some are.

    Returns:
        Such as "must be a whole number, not a string"; another complaint as it is.
    """
    if allowed and (unlisted := _UNLISTED.fullmatch(complaint)):
        return f"must be one of {', '.join(_listed(value) for value in allowed)}, not {unlisted[1]}"
    match = _EXPECTED.fullmatch(complaint)
    if match is None or match[1] not in _TYPES:
        return complaint
    types = _TYPES | {"object": table}
    bound = f" {_BOUNDS[match[2]]} {match[3]}" if match[2] else ""
    found = (types | {"float": "a fraction", "null": "null"}).get(match[4] or "")
    return f"must be {types[match[1]]}{bound}" + (f", not {found}" if found else "")
