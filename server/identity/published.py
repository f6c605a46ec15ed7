"""The keys that an issuer of tokens publishes: fetched when one is needed, one fetch at a time, and not often."""

import asyncio
import json
import logging
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from math import inf
from time import monotonic

import jwt

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
KEPT_SECONDS = 300.0
"""How long keys that were fetched are good for."""

PAUSE_SECONDS = 30.0
"""The least time between two fetches. Anybody can send tokens that name unknown keys; they make no more of them."""


class KeysUnavailable(Exception):
    """The issuer did not tell its keys, now or a moment ago."""


class PublishedKeys:
    """The keys of an issuer, by their ids.

    They are fetched on a thread of their own, so whoever waits for a silent issuer holds up nobody else.

    Args:
        issuer: who publishes them.
        address: where; empty to find it by OpenID Connect's discovery.
    """

    def __init__(self, issuer: str, address: str) -> None:
        self._issuer = issuer
        self._address = address
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._asked = -inf
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="issuer")

    async def find(self, key_id: str) -> jwt.PyJWK:
        """A key by its id.

        Raises:
            KeysUnavailable: it is not known here, and the issuer cannot be asked.
            InvalidTokenError: the issuer publishes no such key.
        """
        if self._kept(key_id) is None:
            await self._refresh()
        if (key := self._kept(key_id)) is not None:
            return key
        if self._failed:
            raise KeysUnavailable
        raise jwt.InvalidTokenError("its issuer publishes no key of the id that it names")

    def _kept(self, key_id: str) -> jwt.PyJWK | None:
        return self._keys.get(key_id) if monotonic() - self._fetched < KEPT_SECONDS else None

    async def _refresh(self) -> None:
        """Fetch the keys, or wait for the fetch that is under way; do nothing shortly after one."""
        if self._fetching is None:
            if monotonic() - self._asked < PAUSE_SECONDS:
                return
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)  # others wait for it too, when the one who began it hangs up

    async def _fetch(self) -> None:
        try:
            keys = await asyncio.get_running_loop().run_in_executor(self._thread, self._read)
            self._keys, self._fetched, self._failed = keys, monotonic(), False
        except Exception as error:  # whatever it answers instead of keys
            self._failed = True
            log.warning("the keys of the issuer %s cannot be fetched: %s", self._issuer, error)
        finally:
            self._asked, self._fetching = monotonic(), None

    def _read(self) -> dict[str, jwt.PyJWK]:
        """The keys by their ids; blocks the thread for it."""
        client = jwt.PyJWKClient(self._address or _discover(self._issuer), timeout=PATIENCE_SECONDS)
        return {str(key.key_id): key for key in client.get_signing_keys()}


def _discover(issuer: str) -> str:
    """Where an issuer publishes its keys (OpenID Connect Discovery 1.0, section 4)."""
    address = issuer.rstrip("/") + "/.well-known/openid-configuration"
    with urllib.request.urlopen(address, timeout=PATIENCE_SECONDS) as answer:
        return str(json.load(answer)["jwks_uri"])
