"""The machine's settings: frozen, from DARKROOM_* environment variables, each with a default that works."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipelines.budgets import budget_bytes


class SettingsError(Exception):
    """An environment variable holds what it may not; the message names it and what is allowed."""


@dataclass(frozen=True)
class Settings:
    """Everything an operator may set. The field `x` is read from `DARKROOM_X`.

    Attributes:
        host: the address to listen on.
        port: the port to listen on; 0 lets the system choose one.
        data: the folder for the database and the pictures.
        models: the catalogue file.
        device: auto, cuda, cuda:N, mps or cpu.
        vram_budget: the most device memory for models' weights: "12GB", "80%" or "auto".
        ram_budget: the most host memory for the weights of models that left the device, written likewise.
        idle_unload: minutes after which an unused model is unloaded; 0 for never.
        max_rows: the most rows in one forward pass (an image with guidance takes two).
        queue_limit: the most images that may wait or run; more is answered 503 with Retry-After.
        queue_seconds: the most work that may wait or run, in seconds of the device; the same answer.
        public_url: what absolute URLs start with, when the server stands behind a proxy.
        log_level: debug, info, warning or error.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    data: Path = Path("data")
    models: Path = Path("models.toml")
    device: str = "auto"
    vram_budget: str = "auto"
    ram_budget: str = "auto"
    idle_unload: int = 0
    max_rows: int = 16
    queue_limit: int = 1000
    queue_seconds: int = 300
    public_url: str = ""
    log_level: str = "info"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **overrides: Any) -> "Settings":
        """Read the environment; an override that is not None wins over it.

        Raises:
            SettingsError: naming the variable and what it may hold.
        """
        found = {
            field.name: _parse(variable(field.name), environment[variable(field.name)], type(field.default))
            for field in fields(cls)
            if environment.get(variable(field.name))
        }
        given = {name: value for name, value in overrides.items() if value is not None}
        settings = replace(cls(), **(found | given))
        settings._check()
        return settings

    def _check(self) -> None:
        ranges = {
            "port": (0, 65535),
            "idle_unload": (0, 10_080),
            "max_rows": (2, 256),
            "queue_limit": (1, 100_000),
            "queue_seconds": (1, 86_400),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise SettingsError(f"{variable(name)} must be between {low} and {high}, not {getattr(self, name)}.")
        for name in ("vram_budget", "ram_budget"):
            try:
                budget_bytes(getattr(self, name), whole=0, auto=0)
            except ValueError as error:
                raise SettingsError(f"{variable(name)}: {error}.") from None
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise SettingsError(f"{variable('log_level')} must be debug, info, warning or error.")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"DARKROOM_{name.upper()}"


def _parse(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise SettingsError(f"{name} must be of type {kind.__name__}, not {text!r}.") from None
