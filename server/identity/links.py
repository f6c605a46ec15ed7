"""Addresses of pictures: plain ones while everybody is one owner, and for public pictures; else signed, for a time."""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

from storage.media import MediaName

HOUR = 3600


class Links:
    """Signs addresses with HMAC-SHA256 over path and expiry, and knows its own signatures again.

    Args:
        secret: what signs; None where no address is signed.
        hours: how long a link holds at least.
    """

    def __init__(self, secret: bytes | None, hours: int) -> None:
        self._secret = secret
        self._hours = hours

    def address(self, name: MediaName, public: bool) -> str:
        """Path and query of a media file."""
        if self._secret is None or public:
            return name.url_path
        # Up to the full hour: so a picture's address stays the same for a while, and browsers need not fetch it anew.
        expires = str((int(time.time()) // HOUR + 1 + self._hours) * HOUR)
        return f"{name.url_path}?expires={expires}&signature={_sign(self._secret, name.url_path, expires)}"

    def admits(self, path: str, query: Mapping[str, str]) -> bool:
        """Whether this address carries our signature and has not expired."""
        expires, signature = query.get("expires", ""), query.get("signature", "")
        if self._secret is None or not expires.isdecimal() or len(expires) > 12:
            return False
        expected = _sign(self._secret, path, expires)
        return hmac.compare_digest(expected.encode(), signature.encode()) and int(expires) > time.time()


def _sign(secret: bytes, path: str, expires: str) -> str:
    digest = hmac.digest(secret, f"{path}\n{expires}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
