"""The machine's settings: frozen, from DARKROOM_* environment variables, each with a default that works."""

import ipaddress
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.budgets import RULE, budget_bytes, size_bytes
from pipelines.wording import nearest
from server.outbound.addresses import HOSTS_RULE, Rules

_PREFIX = "DARKROOM_"
_DEVICE = re.compile(r"auto|cuda(:\d+)?|mps|cpu")
_CLAIM = re.compile(r"[^=\s]+=\S.*")
_LET_IN = "(set DARKROOM_AUTH=keys, make a key with `darkroom keys create`, and all others are kept out)"
MIN_SECRET_BYTES = 32
"""Of a secret for HS256: as long as its digest (RFC 7518, section 3.2)."""
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
        min_free: room on the data folder's disk below which no new work is taken: "500MB", "5%", or "0" for none.
        queue_limit: the most images that may wait or run; more is answered 503 with Retry-After.
        queue_seconds: the most work that may wait or run, in seconds of the device; the same answer.
        max_connections: the most connections at a time; whoever comes beyond them is answered 503.
        grace: seconds that a stop gives to pictures which are begun.
        auth: off, where everybody is one owner; keys; or jwt, where keys are taken too.
        jwt_secret: what signs tokens, for HS256.
        jwt_issuer: who signs tokens; without a secret, with keys that it publishes.
        jwt_audience: whom tokens must be made for.
        jwt_jwks: where the issuer's keys are, if it does not tell by OpenID Connect's discovery.
        jwt_operators: claims that make an operator: "groups=admins, email=ann@example.org".
        link_hours: how long a picture's signed address holds.
        requests_per_hour: the most that an owner may hand in within an hour; 0 for no limit, as with the next three.
        megapixel_steps_per_hour: the most work likewise, in millions of pixels times steps.
        jobs_queued: the most jobs of an owner that may wait.
        jobs_at_once: the most jobs of an owner that are at work at the same time.
        credits: on or off: whether jobs are paid for from their owners' balances.
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
    min_free: str = "500MB"
    queue_limit: int = 1000
    queue_seconds: int = 300
    max_connections: int = 512
    grace: int = 30
    auth: str = "off"
    jwt_secret: str = field(default="", repr=False)
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_jwks: str = ""
    jwt_operators: str = ""
    link_hours: int = 24
    requests_per_hour: int = 50
    megapixel_steps_per_hour: int = 0
    jobs_queued: int = 100
    jobs_at_once: int = 2
    credits: str = "off"
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

    @property
    def auth_enabled(self) -> bool:
        """Whether people are asked who they are."""
        return self.auth != "off"

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
            "max_connections": (1, 100_000),
            "grace": (0, 3600),
            "link_hours": (1, 8760),
            "requests_per_hour": (0, 1_000_000),
            "megapixel_steps_per_hour": (0, 1_000_000_000),
            "jobs_queued": (0, 100_000),
            "jobs_at_once": (0, 1000),
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
            size_bytes(self.min_free, whole=0)
        except ValueError:
            yield "min_free", 'like "500MB", "2GB" or "5%", or 0'
        try:
            Rules.parse(self.webhook_hosts)
        except ValueError:
            yield "webhook_hosts", HOSTS_RULE
        if not _DEVICE.fullmatch(self.device):
            yield "device", "auto, cuda, cuda:N, mps or cpu"
        yield from self._broken_auth()
        if self.credits not in ("on", "off"):
            yield "credits", "on or off"
        if self.log_level not in _LEVELS:
            yield "log_level", "debug, info, warning or error"
        if self.public_url and not _is_address(self.public_url):
            yield "public_url", "an http:// or https:// address without ? or #, such as https://pictures.example.org"

    def _broken_auth(self) -> Iterator[tuple[str, str]]:
        if self.auth not in ("off", "keys", "jwt"):
            yield "auth", "off, keys or jwt"
        if not self.auth_enabled and not _is_loopback(self.host):
            yield "host", f"a loopback address while nobody is asked who they are {_LET_IN}"
        if self.auth == "jwt" and not self.jwt_secret and not (self.jwt_issuer and self.jwt_audience):
            needed = f"{variable('jwt_secret')}, or {variable('jwt_issuer')} and {variable('jwt_audience')}"
            yield "auth", f"off or keys as long as {needed}, are not set"
        if 0 < len(self.jwt_secret.encode()) < MIN_SECRET_BYTES:
            raise SettingsError(
                f"{variable('jwt_secret')} must have at least {MIN_SECRET_BYTES} bytes."
            )  # not repeated
        for name, url in (("jwt_issuer", self.jwt_issuer), ("jwt_jwks", self.jwt_jwks)):
            if url and not self.jwt_secret and not _is_address(url):
                yield name, "an http:// or https:// address"
        if not all(_CLAIM.fullmatch(part) for part in _parts(self.jwt_operators)):
            yield "jwt_operators", "claims such as groups=admins, email=ann@example.org"


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each variable that looks like a setting and is none."""
    known = [variable(field.name) for field in fields(Settings)]
    unknown = sorted(name for name in environment if name.startswith(_PREFIX) and name not in known)
    return [f"{name} is no setting and changes nothing{nearest(name, known)}" for name in unknown]


def url_of(host: str, port: int) -> str:
    """The address of a server on a host, which may be an IPv6 address."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _parts(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def pairs_of(text: str) -> list[tuple[str, str]]:
    """What stands before and after the equals signs of "a=b, c=d"."""
    return [(name.strip(), value.strip()) for name, _, value in (part.partition("=") for part in _parts(text))]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
