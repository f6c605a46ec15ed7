"""The machine's settings: frozen, from DARKROOM_* environment variables, each with a default that works."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.budgets import RULE, budget_bytes
from pipelines.wording import nearest
from server.outbound.addresses import HOSTS_RULE, Rules

_PREFIX = "DARKROOM_"
_DEVICE = re.compile(r"auto|cuda(:\d+)?|mps|cpu")
_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(Exception):
    """A variable or an argument holds what it may not; the message names it and what is allowed."""


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
        grace: seconds that a stop gives to pictures which are begun.
        public_url: what absolute URLs start with, when the server stands behind a proxy.
        webhook_hosts: hosts and networks besides the public internet to which webhooks may be sent.
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
    grace: int = 30
    public_url: str = ""
    webhook_hosts: str = ""
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
        if "models" in found and not found["models"].exists():
            raise SettingsError(f"{variable('models')} names {found['models']}, and there is no such file.")
        given = {name: value for name, value in overrides.items() if value is not None}
        settings = replace(cls(), **(found | given))
        settings._check(given)
        return settings

    @property
    def url(self) -> str:
        """Where a program on this machine reaches a server with these settings."""
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        return url_of(anywhere.get(self.host, self.host), self.port)

    def _check(self, arguments: Collection[str]) -> None:
        """Raise SettingsError for the first value that breaks its rule, by the name under which it was given."""
        for name, rule in self._broken_rules():
            spelled = f"--{name}" if name in arguments else variable(name)
            raise SettingsError(f"{spelled} must be {rule}, not {getattr(self, name)!r}.")

    def _broken_rules(self) -> Iterator[tuple[str, str]]:
        ranges = {
            "port": (0, 65535),
            "idle_unload": (0, 10_080),
            "max_rows": (2, 256),
            "queue_limit": (1, 100_000),
            "queue_seconds": (1, 86_400),
            "grace": (0, 3600),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                yield name, f"between {low} and {high}"
        for name in ("vram_budget", "ram_budget"):
            try:
                budget_bytes(getattr(self, name), whole=0, auto=0)
            except ValueError:
                yield name, RULE
        try:
            Rules.parse(self.webhook_hosts)
        except ValueError:
            yield "webhook_hosts", HOSTS_RULE
        if not _DEVICE.fullmatch(self.device):
            yield "device", "auto, cuda, cuda:N, mps or cpu"
        if self.log_level not in _LEVELS:
            yield "log_level", "debug, info, warning or error"
        if self.public_url and not _is_address(self.public_url):
            yield "public_url", "an http:// or https:// address without ? or #, such as https://pictures.example.org"


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each variable that looks like a setting and is none."""
    known = [variable(field.name) for field in fields(Settings)]
    unknown = sorted(name for name in environment if name.startswith(_PREFIX) and name not in known)
    return [f"{name} is no setting and changes nothing{nearest(name, known)}" for name in unknown]


def url_of(host: str, port: int) -> str:
    """The address of a server on a host, which may be an IPv6 address."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for what is none
    except ValueError:
        return False
    whole = parts.scheme in ("http", "https") and bool(parts.hostname)
    return whole and not re.search(r"[\s?#]", url)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{_PREFIX}{name.upper()}"


def _parse(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise SettingsError(f"{name} must be a whole number, not {text!r}.") from None  # text and paths take anything
