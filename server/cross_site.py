"""The guard against pages of other sites: a browser says whom it asks for, and only our own pages may act."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from server.errors import CrossSite

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def refuse_foreign(headers: Mapping[str, str], public_url: str) -> None:
    """Refuse what a page of another site asked for. Programs send neither header.

    Browsers send Sec-Fetch-Site over https and to localhost only; elsewhere their Origin must be our own address.
    The order is that of Go's http.CrossOriginProtection.

    Raises:
        CrossSite
    """
    site = headers.get("sec-fetch-site")
    if site in ("same-origin", "none"):
        return
    origin = headers.get("origin")
    if site is None and (origin is None or _place(origin) in {headers.get("host"), _place(public_url)} - {""}):
        return
    raise CrossSite("This was asked for by a page of another site. Ask from a page of this server, or from a program.")


def _place(url: str) -> str:
    """Host and port, or nothing where there is none, as in the origin "null"."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""
