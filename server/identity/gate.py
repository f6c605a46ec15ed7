"""The gate: finds out who asks by the credential of a request, and whether that credential still holds."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from hmac import compare_digest
from time import monotonic
from typing import TypeVar

from litestar.datastructures import Headers

from server.errors import Unauthenticated
from server.identity.caller import LOCAL, Caller
from server.identity.keys import PREFIX, Keys
from server.identity.tokens import Tokens

T = TypeVar("T")

PROTOCOL = "darkroom"
"""What a browser names before its key among a WebSocket's protocols: there it can send no other header."""

RECHECK_SECONDS = 10.0
"""How often the credential behind a stream is looked at; a stream wakes every 15 seconds, so it ends within 30."""

HOW = "Send a key as `Authorization: Bearer dk_...`; an operator makes one with `darkroom keys create`."


class Gate:
    """Every request passes here.

    Args:
        enabled: whether anybody is asked who they are.
        keys: those that people were given.
        tokens: reads tokens of an issuer; None where none are taken.
        local_pass: what programs of this machine's operator show, see `server.identity.local_pass`.
    """

    def __init__(self, enabled: bool, keys: Keys, tokens: Tokens | None, local_pass: str) -> None:
        self.enabled = enabled
        self.keys = keys
        self._tokens = tokens
        self._local_pass = local_pass

    async def caller(self, headers: Headers) -> Caller:
        """Who asks.

        Raises:
            Unauthenticated: there is no credential, or it is worth nothing.
        """
        if not self.enabled:
            return LOCAL
        credential = _credential(headers)
        if not credential:
            bare = headers.get("authorization", "").startswith(PREFIX)
            missing = "The key needs the word `Bearer` before it." if bare else "A credential is needed."
            raise Unauthenticated(f"{missing} {HOW}")
        if compare_digest(credential.encode(), self._local_pass.encode()):
            return LOCAL
        if self._tokens is not None and not credential.startswith(PREFIX):
            return await self._tokens.caller(credential)
        if (caller := await self.keys.caller(credential)) is None:
            raise Unauthenticated(f"This key is unknown, expired or revoked. {HOW}")
        return caller

    async def recheck(self, caller: Caller) -> None:
        """Look at a credential again, after a body that may have taken its time.

        Raises:
            Unauthenticated: it was revoked or has expired meanwhile.
        """
        if self.enabled and not await self._admits(caller):
            raise Unauthenticated("This credential was revoked, or has expired, while the request was on its way.")

    async def while_admitted(self, caller: Caller, stream: AsyncIterator[T]) -> AsyncIterator[T]:
        """A stream until its end, or until the caller's credential is revoked or expires."""
        looked = monotonic()
        async with aclosing(stream) as items:  # type: ignore[type-var]  # the streams here are generators
            async for item in items:
                if monotonic() - looked >= RECHECK_SECONDS:
                    if not await self._admits(caller):
                        return
                    looked = monotonic()
                yield item

    async def _admits(self, caller: Caller) -> bool:
        if caller.expires is not None and caller.expires <= datetime.now(UTC):
            return False
        return caller.key_id is None or await self.keys.holds(caller.key_id)


def _credential(headers: Headers) -> str:
    """The bearer's token of a request, or of a WebSocket that names its key after our protocol."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    protocols = [protocol.strip() for protocol in headers.get("sec-websocket-protocol", "").split(",")]
    return protocols[1] if protocols[0] == PROTOCOL and len(protocols) == 2 else ""
