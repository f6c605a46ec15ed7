"""The HTTP surface, one controller a file. A module dropped into this folder is served; nothing else is edited."""

from importlib import import_module
from pkgutil import iter_modules

from litestar import Controller


def controllers() -> list[type[Controller]]:
    """Every controller defined in this folder's modules."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Controller) and value.__module__ == module.__name__
    ]
