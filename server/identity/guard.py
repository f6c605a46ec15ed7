"""The guard in front of every route: denied unless allowed, and before a body is read.

A route is for users unless its `opt` says otherwise, so one that nobody thought about is closed.
"""

import ipaddress
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.datastructures import Headers
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.types import Scope

from pipelines.errors import InvalidRequest
from server.cross_site import SAFE_METHODS, refuse_foreign
from server.errors import Forbidden
from server.identity.caller import Caller, Permission
from server.state import Services

Connection = ASGIConnection[Any, Any, Any, Any]


class Access(StrEnum):
    """Whom a route is for."""

    PUBLIC = "public"
    USER = "user"
    OPERATOR = "operator"


PUBLIC = {"access": Access.PUBLIC}
OPERATOR = {"access": Access.OPERATOR}


def access_of(handler: BaseRouteHandler) -> Access:
    """Whom a route is for."""
    return Access(handler.opt.get("access", Access.USER))


def screen(connection: Connection, handler: BaseRouteHandler) -> None:
    """Refuse what no handler should see, whoever asks.

    Raises:
        NotFoundException, InvalidRequest, CrossSite
    """
    if "\0" in connection.scope["path"]:
        raise NotFoundException  # to the system's own calls such a path is an error of another kind
    services: Services = connection.app.state.services
    public_url = services.settings.public_url
    name = _host(connection.headers)
    if not services.gate.enabled:
        _refuse_foreign_name(name, public_url)
    if connection.scope.get("method") not in SAFE_METHODS:  # a WebSocket has none, and every page may open one
        refuse_foreign(connection.headers, public_url)


async def authorise(connection: Connection, handler: BaseRouteHandler) -> None:
    """Find the caller, and refuse one who may not use this route.

    Raises:
        Unauthenticated: nobody knows who asks.
        Forbidden: an operator's route, or a credential that is not good for this.
    """
    access = access_of(handler)
    if access is Access.PUBLIC:
        return
    caller = await find_caller(connection)
    if access is Access.OPERATOR and not caller.is_operator:
        raise Forbidden("Only operators may do this.")
    connection.scope["state"]["caller"] = caller


async def find_caller(connection: Connection) -> Caller:
    """Who asks, with a credential that is good for requests of this method.

    Raises:
        Unauthenticated: nobody knows who asks.
        Forbidden: the credential may only read, or only write.
    """
    services: Services = connection.app.state.services
    caller = await services.gate.caller(connection.headers)
    needed = Permission.READ if connection.scope.get("method", "GET") in SAFE_METHODS else Permission.WRITE
    if needed not in caller.permissions:
        raise Forbidden(f"This key is not made for this: it lacks the permission {str(needed)!r}.")
    return caller


def caller_of(scope: Scope) -> Caller:
    """Whoever the guard let in."""
    caller: Caller = scope["state"]["caller"]
    return caller


def _host(headers: Headers) -> str:
    """The name of the server in a request. Raises InvalidRequest when it, or its port, can be none."""
    try:
        parts = urlsplit(f"//{headers.get('host', '')}")
        _ = parts.port  # a picture's absolute URL is built from it later
    except ValueError as error:
        raise InvalidRequest("Host", "Host: it must be a host, and a port of at most 65535 if any.") from error
    return parts.hostname or ""


def _refuse_foreign_name(name: str, public_url: str) -> None:
    """Refuse what was addressed to another name, which some page made its own name point here for (DNS rebinding).

    Where keys are asked for this is no danger: no browser sends them unasked.
    """
    if name == "localhost" or _is_loopback(name) or (name and name == urlsplit(public_url).hostname):
        return
    raise InvalidRequest(
        "Host",
        "Host: while authentication is off, this server answers to localhost and the host of DARKROOM_PUBLIC_URL only.",
    )


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
