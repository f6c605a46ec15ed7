"""Asking a running server, for the command line."""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATIENCE_SECONDS = 5.0
"""How long a server may take to answer one question."""

REDIRECTS = (301, 302, 303, 307, 308)


class Unreachable(Exception):
    """Nobody answers there, or somebody who is no Darkroom, or one who refuses, in its own words."""


@dataclass(frozen=True)
class Remote:
    """A server's address, and the key that it is asked with, if any."""

    url: str
    key: str = field(default="", repr=False)

    def ask(self, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the server answers under `data`.

        Raises:
            Unreachable: saying what to do.
        """
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, content, headers, method=method)
        # A proxy is for other machines' addresses.
        proxies: Sequence[Any] = [urllib.request.ProxyHandler({})] if _is_here(self.url) else []
        opener = urllib.request.build_opener(_NoRedirects, *proxies)
        try:
            with opener.open(request, timeout=PATIENCE_SECONDS) as answer:
                data = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise Unreachable(self._refusal(path, error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise Unreachable(f"{self.url} does not answer as a Darkroom does.") from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            message = f"No server answers at {self.url} ({reason}). Start one, or name another with --url."
            raise Unreachable(message) from error
        if not isinstance(data, dict):
            raise Unreachable(f"{self.url} does not answer as a Darkroom does.")
        return data

    def _refusal(self, path: str, error: urllib.error.HTTPError) -> str:
        if error.code in REDIRECTS:
            return (
                f"{self.url} leads to {error.headers.get('Location')}: if you trust that address, name it with --url."
            )
        try:
            return str(json.load(error)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return f"{self.url} answers {error.code} to {path}: is it a Darkroom of this version?"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """No answer leads elsewhere: the key would be sent along, to any host that it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
