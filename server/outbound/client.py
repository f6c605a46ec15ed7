"""The one client with which the server calls out: it connects to checked addresses only, follows nothing, reads little.

It stands on httpcore and not on httpx, since everything that httpx adds would have to be turned off again: redirects,
cookies, proxies and credentials from the environment.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

import httpcore

from server.outbound.addresses import Address, AddressRefused, Place, Rules, parse_url

TOTAL_SECONDS = 15.0
"""For a whole request: looking the name up, connecting, sending, and reading the answer."""

CONNECT_SECONDS = 5.0
"""For each of a host's addresses; one that does not answer leaves time for the next."""

MAX_ANSWER_BYTES = 64 * 1024
"""Of the answer's body; what is beyond is not read."""

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


class OutboundFailed(Exception):
    """There is no answer; the message says why."""


@dataclass(frozen=True)
class Reply:
    """An answer's status and headers, by their names in lower case."""

    status: int
    headers: Mapping[str, str]


class Outbound:
    """Requests to addresses that somebody typed. Each looks the name up anew and connects to what was checked.

    Args:
        rules: where connections may lead.
        resolve: finds a host's addresses.
        seconds: for a whole request.
        context: which certificates are believed; else those of the system and of Mozilla.
    """

    def __init__(
        self,
        rules: Rules,
        resolve: Resolve | None = None,
        seconds: float = TOTAL_SECONDS,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules
        self._resolve = resolve or look_up
        self._seconds = seconds
        self._context = context or httpcore.default_ssl_context()

    async def admit(self, url: str) -> tuple[Place, Sequence[Address]]:
        """Take a URL apart and find the addresses to connect to. Raises AddressRefused."""
        place = parse_url(url)
        try:
            async with asyncio.timeout(self._seconds):
                addresses = await self._resolve(place.host, place.port)
        except (OSError, ValueError) as error:  # a timeout is an OSError, a label that is none a ValueError
            raise AddressRefused(f"the host {place.host} cannot be found.") from error
        self._rules.check(place, addresses)
        return place, addresses

    async def post(self, url: str, headers: Mapping[str, str], content: bytes) -> Reply:
        """Send a body. Raises AddressRefused; OutboundFailed."""
        try:
            async with asyncio.timeout(self._seconds):
                place, addresses = await self.admit(url)
                return await self._post(place, addresses, headers, content)
        except TimeoutError as error:
            raise OutboundFailed(f"There was no whole answer within {self._seconds:g} seconds.") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise OutboundFailed(f"The connection failed: {error or type(error).__name__}") from error

    async def _post(
        self, place: Place, addresses: Sequence[Address], headers: Mapping[str, str], content: bytes
    ) -> Reply:
        url = httpcore.URL(scheme=place.scheme, host=place.host, port=place.port, target=place.target)
        connection = httpcore.AsyncHTTPConnection(url.origin, self._context, network_backend=_Pinned(addresses))
        own = {"Host": place.host_header, "Content-Length": str(len(content)), "Connection": "close"}
        sent: list[tuple[bytes | str, bytes | str]] = [*own.items(), *headers.items()]
        async with connection, connection.stream("POST", url, headers=sent, content=content) as answer:
            read = 0
            async for chunk in answer.aiter_stream():
                read += len(chunk)
                if read > MAX_ANSWER_BYTES:
                    break
            found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
            return Reply(answer.status, found)


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, whatever the host's name leads to by now."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in self._addresses:
            try:
                return await self._backend.connect_tcp(str(address), port, CONNECT_SECONDS)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


async def look_up(host: str, port: int) -> Sequence[Address]:
    """A host's addresses, in the system's order of preference. Raises OSError; ValueError.

    Each time in a thread of its own that nobody waits for at the end: a resolver may hang for longer than a stop may.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Sequence[Address]] = loop.create_future()

    def settle(addresses: Sequence[Address], error: Exception | None) -> None:
        if found.done():  # whoever asked has given up
            return
        if error is None:
            found.set_result(addresses)
        else:
            found.set_exception(error)

    def ask() -> None:
        addresses: list[Address] = []
        failure = None
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [ip_address(place[0]) for *_, place in answers]
        except (OSError, ValueError) as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, addresses, failure)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    return await found
