"""Webhooks: operators say who is told of events, and see what came of each delivery."""

from collections.abc import Sequence
from typing import Annotated, Any, NotRequired, TypedDict, cast

import msgspec
from litestar import Controller, Request, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from pipelines.errors import InvalidRequest
from server.body import SMALL_JSON_BYTES, read_struct
from server.errors import MissingField, UnknownField
from server.identity.guard import OPERATOR
from server.playground import iso
from server.schemas import Moment, Success, documents, says, success
from server.state import Services
from server.webhooks.signing import new_secret
from storage.webhook_records import DeliveryRecord, DeliveryStatus, EventType, NewWebhook, WebhookRecord

TYPES = tuple(type for type in EventType if type is not EventType.TEST)
MISTAKES = (MissingField, UnknownField)
SHOWN_DELIVERIES = 20
MAX_CHARACTERS = 256


class NewEndpoint(msgspec.Struct, forbid_unknown_fields=True):
    """An endpoint that is to be told of events."""

    url: Annotated[str, says("Where to send them: https, unless `DARKROOM_WEBHOOK_HOSTS` names the host.")]
    description: Annotated[str, says("What it is.", maxLength=MAX_CHARACTERS)] = ""
    types: Annotated[list[str], says("Which events; all, unless given.", items={"enum": list(TYPES)})] = []
    owner: Annotated[str, says("Only this owner's.", minLength=1, maxLength=MAX_CHARACTERS)] | None = None
    enabled: Annotated[bool, says("Whether it is told now.")] = True


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """A change of a webhook; what is absent stays as it is."""

    description: Annotated[str, says("What it is.", maxLength=MAX_CHARACTERS)] | msgspec.UnsetType = msgspec.UNSET
    types: Annotated[list[str], says("Which events.", items={"enum": list(TYPES)})] | msgspec.UnsetType = msgspec.UNSET
    enabled: Annotated[bool, says("Whether it is told now.")] | msgspec.UnsetType = msgspec.UNSET
    rotate: Annotated[bool, says("Whether to draw a new secret; the old one signs beside it for a day.")] = False


class WebhookFacts(TypedDict):
    """An endpoint that is told of events."""

    id: str
    url: str
    description: str
    types: Annotated[Sequence[str], says("Which events; none stands for all.")]
    owner: Annotated[str | None, says("Whose events; null for everybody's.")]
    enabled: bool
    trouble: Annotated[str | None, says("Why it was turned off, or what its last deliveries failed of.")]
    createdAt: Moment


class WithSecret(WebhookFacts):
    """A webhook with a secret that was just drawn."""

    secret: NotRequired[Annotated[str, says("What signs its deliveries, told this once only.")]]


class DeliveryFacts(TypedDict):
    """One event's way to one endpoint."""

    eventId: Annotated[str, says("The `webhook-id` of each attempt.")]
    type: EventType
    status: DeliveryStatus
    attempts: Annotated[int, says("How often it was sent.", minimum=0)]
    statusCode: Annotated[int | None, says("What the endpoint answered last.")]
    error: Annotated[str | None, says("What the last attempt failed of.")]
    attemptedAt: Moment | None
    nextAttempt: Annotated[Moment | None, says("When it is sent again, where it will be.")]


class WithDeliveries(WebhookFacts):
    """A webhook and what came of its last deliveries."""

    deliveries: Annotated[list[DeliveryFacts], says("The newest first.")]


class WebhookList(TypedDict):
    """All webhooks, the oldest first."""

    webhooks: list[WebhookFacts]


class Removed(TypedDict):
    """A webhook that is forgotten."""

    id: str


class Tested(TypedDict):
    """A test event that is on its way."""

    eventId: str


class Webhooks(Controller):
    """The operators' paths about webhooks."""

    path = "/api/v1/webhooks"
    tags = ["webhooks"]
    opt = OPERATOR

    @get("/")
    async def webhooks(self, services: NamedDependency[Services]) -> Success[WebhookList]:
        """All webhooks, the oldest first."""
        return success(WebhookList(webhooks=[_facts(webhook) for webhook in await services.webhooks.all()]))

    @post(
        "/",
        status_code=201,
        opt=OPERATOR
        | documents(
            body=NewEndpoint, example={"url": "https://example.org/hook"}, raises=MISTAKES, sends={201: ("Location",)}
        ),
    )
    async def register(
        self, request: Request[Any, Any, Any], services: NamedDependency[Services]
    ) -> Response[Success[WithSecret]]:
        """Register an endpoint. The answer alone tells its secret."""
        asked = await read_struct(request, NewEndpoint, SMALL_JSON_BYTES)
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
        made = WithSecret(**_facts(webhook), secret=webhook.secret)
        return Response(success(made), status_code=201, headers=headers)

    @get("/{webhook_id:str}")
    async def webhook(self, services: NamedDependency[Services], webhook_id: FromPath[str]) -> Success[WithDeliveries]:
        """One webhook with its last deliveries, the newest first."""
        webhook = await services.webhooks.get(webhook_id)
        deliveries = await services.webhooks.deliveries(webhook_id, SHOWN_DELIVERIES)
        return success(WithDeliveries(**_facts(webhook), deliveries=[_delivery(one) for one in deliveries]))

    @patch(
        "/{webhook_id:str}", opt=OPERATOR | documents(body=Change, example={"enabled": False}, raises=(UnknownField,))
    )
    async def change(
        self, request: Request[Any, Any, Any], services: NamedDependency[Services], webhook_id: FromPath[str]
    ) -> Response[Success[WithSecret]]:
        """Change what it is told, turn it off or on, or give it a new secret, which the answer tells."""
        asked = await read_struct(request, Change, SMALL_JSON_BYTES)
        given = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not msgspec.UNSET}
        secret = new_secret() if given.pop("rotate") else None
        _check(given.get("description", ""), given.get("types", []))
        webhook = await services.webhooks.change(webhook_id, given, secret)
        told = cast(WithSecret, {**_facts(webhook), **({"secret": secret} if secret else {})})
        return Response(success(told), headers={"Cache-Control": "no-store"})

    @delete("/{webhook_id:str}", status_code=200)
    async def remove(self, services: NamedDependency[Services], webhook_id: FromPath[str]) -> Success[Removed]:
        """Forget a webhook, and all that was to be delivered to it."""
        await services.webhooks.delete(webhook_id)
        return success(Removed(id=webhook_id))

    @post("/{webhook_id:str}/test", status_code=202)
    async def test(self, services: NamedDependency[Services], webhook_id: FromPath[str]) -> Success[Tested]:
        """Send it an event that tells nothing, whatever types it wants."""
        return success(Tested(eventId=await services.webhooks.test(webhook_id)))


def _check(description: str, types: list[str], owner: str | None = None) -> None:
    """Raises InvalidRequest."""
    if owner == "":
        raise InvalidRequest("owner", "owner must not be empty; leave it out for everybody's events.")
    for type in types:
        if type not in TYPES:
            raise InvalidRequest("types", f"types must be among {', '.join(TYPES)}, not {type[:40]!r}.")
    for field, text in (("description", description), ("owner", owner or "")):
        if len(text) > MAX_CHARACTERS or "\0" in text:
            raise InvalidRequest(field, f"{field} must have at most {MAX_CHARACTERS} characters and no NUL.")


def _facts(webhook: WebhookRecord) -> WebhookFacts:
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


def _delivery(delivery: DeliveryRecord) -> DeliveryFacts:
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
