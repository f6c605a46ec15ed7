"""Keys: who the caller is, and, for operators, the keys of everybody."""

from datetime import timedelta
from typing import Any

import msgspec
from litestar import Controller, Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from pipelines.errors import InvalidRequest
from pipelines.request import check_range
from server.body import read_json, read_struct
from server.errors import MissingField
from server.identity.caller import Caller, Permission, Role
from server.identity.guard import OPERATOR
from server.identity.keys import NewKey, cancel_jobs_of, key_facts
from server.state import Services

MAX_DAYS = 3650
MAX_CHARACTERS = 255


class KeyBody(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /api/v1/keys reads."""

    owner: str | None = None
    name: str = ""
    role: str = Role.USER
    permissions: list[str] | None = None
    days: int | None = None


class Keys(Controller):
    """The application's paths about people."""

    path = "/api/v1"
    tags = ["people"]

    @get("/me", sync_to_thread=False)
    def me(self, services: NamedDependency[Services], caller: NamedDependency[Caller]) -> dict[str, Any]:
        """Who the server takes the caller for."""
        data = {
            "owner": caller.owner_id,
            "role": caller.role,
            "permissions": sorted(caller.permissions),
            "keyId": caller.key_id,
            "auth": services.settings.auth,
        }
        return {"success": True, "data": data}

    @get("/keys", opt=OPERATOR)
    async def keys(self, services: NamedDependency[Services], owner: FromQuery[str | None] = None) -> dict[str, Any]:
        """Everybody's keys or an owner's, the newest first; their secrets are known to nobody."""
        found = await services.gate.keys.store.all(owner)
        return {"success": True, "data": {"keys": [key_facts(record) for record in found]}}

    @post("/keys", opt=OPERATOR, status_code=201)
    async def create(self, request: Request[Any, Any, Any], services: NamedDependency[Services]) -> dict[str, Any]:
        """Make a key. Its text is in this answer and nowhere else, ever again."""
        new = _new_key(read_struct(await read_json(request), KeyBody))
        record, key = await services.gate.keys.issue(new)
        return {"success": True, "data": key_facts(record) | {"key": key}}

    @delete("/keys/{key_id:str}", opt=OPERATOR, status_code=200)
    async def revoke(self, services: NamedDependency[Services], key_id: FromPath[str]) -> dict[str, Any]:
        """End a key at once: its jobs are cancelled, and its streams end within 30 seconds."""
        record = await services.gate.keys.store.revoke(key_id)
        await cancel_jobs_of(record, services.jobs.lists, services.jobs.cancel)
        return {"success": True, "data": key_facts(record)}


def _new_key(body: KeyBody) -> NewKey:
    """Check what an operator wants. Raises InvalidRequest, naming the field and the rule."""
    if not body.owner:
        raise MissingField("owner", "owner is required: the name of the one whose key it is to be.")
    for name, text in (("owner", body.owner), ("name", body.name)):
        if len(text) > MAX_CHARACTERS or not text.isprintable():
            raise InvalidRequest(name, f"{name} must have at most {MAX_CHARACTERS} characters, all of them printable.")
    if body.role not in list(Role):
        raise InvalidRequest("role", f"role must be {' or '.join(Role)}, not {body.role[:24]!r}.")
    permissions = list(Permission) if body.permissions is None else body.permissions
    if not permissions or not set(permissions) <= set(Permission):
        raise InvalidRequest("permissions", f"permissions must be a list of one or more of: {', '.join(Permission)}.")
    if body.days is not None:
        check_range("days", body.days, 1, MAX_DAYS)
    return NewKey(
        owner_id=body.owner,
        name=body.name,
        role=Role(body.role),
        permissions=frozenset(Permission(word) for word in permissions),
        lifetime=None if body.days is None else timedelta(days=body.days),
    )
