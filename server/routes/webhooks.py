"""Webhooks: operators say who is told of events, and see what came of each delivery."""

from typing import Any

import msgspec
from litestar import Controller, Request, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from pipelines.errors import InvalidRequest
from server.body import read_struct
from server.identity.guard import OPERATOR
from server.playground import iso
from server.state import Services
from server.webhooks.signing import new_secret
from storage.webhook_records import DeliveryRecord, DeliveryStatus, EventType, NewWebhook, WebhookRecord

TYPES = tuple(type for type in EventType if type is not EventType.TEST)
SHOWN_DELIVERIES = 20
MAX_CHARACTERS = 256


class NewEndpoint(msgspec.Struct, forbid_unknown_fields=True):
    """What POST /api/v1/webhooks reads."""

    url: str
    description: str = ""
    types: list[str] = []
    owner: str | None = None
    enabled: bool = True


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What PATCH reads; what is absent stays as it is."""

    description: str | msgspec.UnsetType = msgspec.UNSET
    types: list[str] | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET
    rotate: bool = False


class Webhooks(Controller):
    """The operators' paths about webhooks."""

    path = "/api/v1/webhooks"
    tags = ["webhooks"]
    opt = OPERATOR

    @get("/")
    async def webhooks(self, services: NamedDependency[Services]) -> dict[str, Any]:
        """All webhooks, the oldest first."""
        return _success({"webhooks": [_facts(webhook) for webhook in await services.webhooks.all()]})

    @post("/", status_code=201)
    async def register(
        self, request: Request[Any, Any, Any], services: NamedDependency[Services]
    ) -> Response[dict[str, Any]]:
        """Register an endpoint. The answer alone tells its secret."""
        asked = await read_struct(request, NewEndpoint)
        _check(asked.description, asked.types, asked.owner)
        await services.outbound.admit(asked.url)
        new = NewWebhook(
            url=asked.url,
            secret=new_secret(),
            description=asked.description,
            types=asked.types,
            owner_id=asked.owner,
            enabled=asked.enabled,
        )
        webhook = await services.webhooks.insert(new)
        headers = {"Location": f"/api/v1/webhooks/{webhook.id}", "Cache-Control": "no-store"}
        return Response(_success(_facts(webhook) | {"secret": webhook.secret}), status_code=201, headers=headers)

    @get("/{webhook_id:str}")
    async def webhook(self, services: NamedDependency[Services], webhook_id: FromPath[str]) -> dict[str, Any]:
        """One webhook with its last deliveries, the newest first."""
        webhook = await services.webhooks.get(webhook_id)
        deliveries = await services.webhooks.deliveries(webhook_id, SHOWN_DELIVERIES)
        return _success(_facts(webhook) | {"deliveries": [_delivery(one) for one in deliveries]})

    @patch("/{webhook_id:str}")
    async def change(
        self, request: Request[Any, Any, Any], services: NamedDependency[Services], webhook_id: FromPath[str]
    ) -> Response[dict[str, Any]]:
        """Change what it is told, turn it off or on, or give it a new secret, which the answer tells."""
        asked = await read_struct(request, Change)
        given = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not msgspec.UNSET}
        secret = new_secret() if given.pop("rotate") else None
        _check(given.get("description", ""), given.get("types", []))
        webhook = await services.webhooks.change(webhook_id, given, secret)
        told = {"secret": secret} if secret else {}
        return Response(_success(_facts(webhook) | told), headers={"Cache-Control": "no-store"})

    @delete("/{webhook_id:str}", status_code=200)
    async def remove(self, services: NamedDependency[Services], webhook_id: FromPath[str]) -> dict[str, Any]:
        """Forget a webhook, and all that was to be delivered to it."""
        await services.webhooks.delete(webhook_id)
        return _success({"id": webhook_id})

    @post("/{webhook_id:str}/test", status_code=202)
    async def test(self, services: NamedDependency[Services], webhook_id: FromPath[str]) -> dict[str, Any]:
        """Send it an event that tells nothing, whatever types it wants."""
        return _success({"eventId": await services.webhooks.test(webhook_id)})


def _check(description: str, types: list[str], owner: str | None = None) -> None:
    """Raises InvalidRequest."""
    for type in types:
        if type not in TYPES:
            raise InvalidRequest("types", f"types must be among {', '.join(TYPES)}, not {type[:40]!r}.")
    for field, text in (("description", description), ("owner", owner or "")):
        if len(text) > MAX_CHARACTERS or "\0" in text:
            raise InvalidRequest(field, f"{field} must have at most {MAX_CHARACTERS} characters and no NUL.")


def _success(data: dict[str, Any]) -> dict[str, Any]:
    return {"success": True, "data": data}


def _facts(webhook: WebhookRecord) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "url": webhook.url,
        "description": webhook.description,
        "types": webhook.types,
        "owner": webhook.owner_id,
        "enabled": webhook.enabled,
        "trouble": webhook.trouble,
        "createdAt": iso(webhook.created_at),
    }


def _delivery(delivery: DeliveryRecord) -> dict[str, Any]:
    waits = delivery.status is DeliveryStatus.PENDING
    return {
        "eventId": delivery.event_id,
        "type": delivery.type,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "statusCode": delivery.status_code,
        "error": delivery.error,
        "attemptedAt": iso(delivery.attempted_at) if delivery.attempted_at else None,
        "nextAttempt": iso(delivery.due_at) if waits else None,
    }
