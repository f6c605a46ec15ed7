"""Keys: who the caller is, and, for operators, the keys of everybody."""

from datetime import timedelta
from typing import Annotated, Any, Literal, TypedDict, cast

import msgspec
from litestar import Controller, Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from pipelines.errors import InvalidRequest
from pipelines.request import check_range
from server.body import SMALL_JSON_BYTES, read_struct
from server.errors import MissingField, UnknownField
from server.identity.caller import MAX_CHARACTERS, Caller, Permission, Role, is_name
from server.identity.guard import OPERATOR
from server.identity.keys import KeyFacts, MadeKey, NewKey, cancel_jobs_of, key_facts
from server.schemas import Success, documents, says, success
from server.state import Services

MISTAKES = (MissingField, UnknownField)
MAX_DAYS = 3650


class KeyBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a key is to be."""

    owner: Annotated[str, says("Whose it is to be.", minLength=1, maxLength=MAX_CHARACTERS)] | None = None
    name: Annotated[str, says("What it is for.", maxLength=MAX_CHARACTERS)] = ""
    role: Annotated[str, says("Operators run the server as well.", enum=list(Role))] = Role.USER
    permissions: Annotated[list[str], says("What it is good for.", items={"enum": list(Permission)})] | None = None
    days: (
        Annotated[int, says("After how many days it ends; never, unless given.", minimum=1, maximum=MAX_DAYS)] | None
    ) = None


class WhoIAm(TypedDict):
    """Who the server takes the caller for."""

    owner: Annotated[str, says("Whose jobs and pictures are the caller's.")]
    role: Role
    permissions: list[Permission]
    keyId: Annotated[str | None, says("The id of the caller's key; null where another credential was sent, or none.")]
    auth: Annotated[Literal["off", "keys", "jwt"], says("How the server knows people.")]


class KeyList(TypedDict):
    """Keys, the newest first."""

    keys: list[KeyFacts]


class Keys(Controller):
    """The application's paths about people."""

    path = "/api/v1"
    tags = ["people"]

    @get("/me", sync_to_thread=False)
    def me(self, services: NamedDependency[Services], caller: NamedDependency[Caller]) -> Success[WhoIAm]:
        """Who the server takes the caller for."""
        auth = cast(Literal["off", "keys", "jwt"], services.settings.auth)
        permissions = sorted(caller.permissions)
        return success(
            WhoIAm(owner=caller.owner_id, role=caller.role, permissions=permissions, keyId=caller.key_id, auth=auth)
        )

    @get("/keys", opt=OPERATOR)
    async def keys(self, services: NamedDependency[Services], owner: FromQuery[str | None] = None) -> Success[KeyList]:
        """Everybody's keys or an owner's, the newest first; their secrets are known to nobody."""
        found = await services.gate.keys.store.all(owner)
        return success(KeyList(keys=[key_facts(record) for record in found]))

    @post("/keys", opt=OPERATOR | documents(body=KeyBody, example={"owner": "ann"}, raises=MISTAKES), status_code=201)
    async def create(self, request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Success[MadeKey]:
        """Make a key. Its text is in this answer and nowhere else, ever again."""
        new = _new_key(await read_struct(request, KeyBody, SMALL_JSON_BYTES))
        record, key = await services.gate.keys.issue(new)
        return success(MadeKey(**key_facts(record), key=key))

    @delete("/keys/{key_id:str}", opt=OPERATOR, status_code=200)
    async def revoke(self, services: NamedDependency[Services], key_id: FromPath[str]) -> Success[KeyFacts]:
        """End a key at once: its jobs are cancelled, and its streams end within 30 seconds."""
        record = await services.gate.keys.store.revoke(key_id)
        await cancel_jobs_of(record, services.jobs.lists, services.jobs.cancel)
        return success(key_facts(record))


def _new_key(body: KeyBody) -> NewKey:
    """Check what an operator wants. Raises InvalidRequest, naming the field and the rule."""
    if not body.owner:
        raise MissingField("owner", "owner is required: the name of the one whose key it is to be.")
    for name, text in (("owner", body.owner), ("name", body.name)):
        if text and not is_name(text):
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
