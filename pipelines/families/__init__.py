"""The families of models. A module dropped into this folder that defines a `Family` exists; nothing else is edited."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from pipelines.catalog import FamilyFacts
from pipelines.family import Family


@cache
def families() -> dict[str, type[Family]]:
    """Every family by its module's name."""
    return {module.name: _family(module.name) for module in iter_modules(__path__)}


def family_facts() -> dict[str, FamilyFacts]:
    """What the catalogue needs to know of each family."""
    return {name: family.facts for name, family in families().items()}


def _family(name: str) -> type[Family]:
    module = import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} must define exactly one Family"
    return found[0]
