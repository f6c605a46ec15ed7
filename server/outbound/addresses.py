"""Which addresses the server may connect to: the public internet, and what its operator named besides."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from urllib.parse import SplitResult, urlsplit

from pipelines.errors import InvalidRequest

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SETTING = "DARKROOM_WEBHOOK_HOSTS"
HOSTS_RULE = "hosts (hooks.lan), hosts with a port (127.0.0.1:9000, [::1]:9000) or networks (10.0.0.0/8), with commas"

PORTS = frozenset({443, 8443})
"""Where webhooks are served on the internet; any other port may be another service's, who would read it as commands."""

MAX_URL_CHARACTERS = 2000
_STANDARD_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[a-z0-9_.-]{1,253}")
_PRINTABLE = re.compile(r"[!-\[\]-~]+")  # ASCII without spaces, control characters and the backslash

# What `is_global` lets pass though it leads somewhere else: relays, translators and special purposes, by IANA's
# registries of special-purpose addresses (RFC 6890). Of IPv6 only 2000::/3 is given out to the public at all, so NAT64
# (64:ff9b::), IPv4-mapped (::ffff:) and IPv4-compatible (::) addresses are not in it.
_PUBLIC_IPV6 = ip_network("2000::/3")
_ELSEWHERE = [
    ip_network(written)
    for written in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]


class AddressRefused(InvalidRequest):
    """An address that the server does not connect to."""

    def __init__(self, rule: str) -> None:
        super().__init__("url", f"url: {rule}")


@dataclass(frozen=True)
class Place:
    """A URL that was taken apart once, so that what is checked and what is connected to cannot differ."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _STANDARD_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(url: str) -> Place:
    """Raises AddressRefused."""
    if len(url) > MAX_URL_CHARACTERS or not _PRINTABLE.fullmatch(url):
        raise AddressRefused(
            f"at most {MAX_URL_CHARACTERS} ASCII characters, without spaces and backslashes; write an international"
            " name in its ASCII form (xn--...)."
        )
    try:
        parts = urlsplit(url)
        port = _STANDARD_PORTS[parts.scheme] if parts.port is None else parts.port
    except (ValueError, KeyError) as error:
        raise AddressRefused("it must be an https URL such as https://hooks.example.org/darkroom.") from error
    if "@" in parts.netloc or parts.fragment:
        raise AddressRefused("it may hold no user name, password or fragment; the signature says who sends.")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(parts.scheme, _host(parts), port, target)


@dataclass(frozen=True)
class Rules:
    """Where connections may lead. A host that the operator named may have any address, any port, and plain http.

    Attributes:
        hosts: named ones, each with its port or with None for any.
        networks: addresses that are treated likewise.
        ports: those allowed elsewhere.
    """

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[Network, ...] = ()
    ports: Collection[int] = PORTS

    @classmethod
    def parse(cls, written: str) -> "Rules":
        """Read the operator's setting. Raises ValueError."""
        entries = [entry.strip() for entry in written.split(",") if entry.strip()]
        networks = tuple(ip_network(entry) for entry in entries if "/" in entry)
        return cls(frozenset(_named(entry) for entry in entries if "/" not in entry), networks)

    def check(self, place: Place, addresses: Collection[Address]) -> None:
        """Raises AddressRefused unless every one of the host's addresses may be connected to."""
        if (place.host, place.port) in self.hosts or (place.host, None) in self.hosts:
            return
        outside = [address for address in addresses if not self._named_network(address)]
        if not outside and addresses:
            return
        if place.scheme != "https":
            raise AddressRefused(f"it must start with https://; {SETTING} can allow http to a host of your own.")
        if place.port not in self.ports:
            ports = " or ".join(str(port) for port in sorted(self.ports))
            raise AddressRefused(f"its port must be {ports}, not {place.port}; {SETTING} can allow others.")
        for address in outside:
            if not is_public(address):
                raise AddressRefused(
                    f"{place.host} is {address}, no address of the public internet; {SETTING} can allow it."
                )

    def _named_network(self, address: Address) -> bool:
        return any(address in network for network in self.networks)


def is_public(address: Address) -> bool:
    """Whether an address belongs to one host of the public internet and to no relay into another network."""
    if isinstance(address, IPv6Address) and address not in _PUBLIC_IPV6:
        return False
    special = any(address in network for network in _ELSEWHERE)
    return address.is_global and not address.is_multicast and not special


def _host(parts: SplitResult) -> str:
    """The host in lower case: a name, an IPv4 address in whatever form the resolver takes, or an IPv6 address."""
    host = parts.hostname or ""
    if ":" in host:
        try:
            return str(IPv6Address(host))
        except ValueError as error:
            raise AddressRefused(f"{host[:80]!r} is no IPv6 address.") from error
    if not _NAME.fullmatch(host):
        raise AddressRefused(f"{host[:80]!r} is no host.")
    return host


def _named(entry: str) -> tuple[str, int | None]:
    """A host of the setting, and its port if it has one. Raises ValueError."""
    bare = f"[{entry}]" if entry.count(":") > 1 and not entry.startswith("[") else entry
    try:
        place = parse_url(f"https://{bare}")
    except AddressRefused as error:
        raise ValueError(entry) from error
    return place.host, urlsplit(f"https://{bare}").port
