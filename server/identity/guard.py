"""The guard in front of every route: denied unless allowed, and before a body is read.

A route is for users unless its `opt` says otherwise, so one that nobody thought about is closed.
"""

from enum import StrEnum
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Scope

from server.errors import Forbidden
from server.identity.caller import LOCAL, Caller, Permission

Connection = ASGIConnection[Any, Any, Any, Any]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


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


async def authorise(connection: Connection, handler: BaseRouteHandler) -> None:
    """Find the caller, and refuse one who may not use this route.

    Raises:
        Forbidden: an operator's route, or a credential that may only read.
    """
    access = access_of(handler)
    if access is Access.PUBLIC:
        return
    caller = LOCAL
    if access is Access.OPERATOR and not caller.is_operator:
        raise Forbidden("Only operators may do this.")
    needed = Permission.READ if connection.scope.get("method", "GET") in SAFE_METHODS else Permission.WRITE
    if needed not in caller.scopes:
        raise Forbidden(f"This credential lacks the scope {needed!r}.")
    connection.scope["state"]["caller"] = caller


def caller_of(scope: Scope) -> Caller:
    """Whoever the guard let in."""
    caller: Caller = scope["state"]["caller"]
    return caller
