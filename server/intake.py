"""A request for pictures as it arrives: who asks, the body, the client's own key for it, and the order they come to."""

from dataclasses import dataclass
from typing import Any

from litestar import Request

from pipelines.errors import UnknownModel
from server.body import read_json
from server.client_key import client_key
from server.errors import Interrupted, MissingField, UnknownField, UnsupportedField
from server.generation import order_of, read_body
from server.generation_body import GenerationBody
from server.identity.caller import Caller
from server.jobs.orders import Order
from server.scheduling.queue import QueueFull
from server.state import Services
from storage.errors import KeyReused, LimitReached, NotEnoughCredit
from storage.records import ClientKey

REFUSED = (
    *(MissingField, UnknownField, UnsupportedField, UnknownModel, KeyReused),
    *(LimitReached, NotEnoughCredit, QueueFull, Interrupted),
)
"""What befalls a request for pictures before anything is written."""


@dataclass(frozen=True)
class Intake:
    """What a client sent, and what it asks for."""

    body: GenerationBody
    order: Order
    key: ClientKey | None


async def read_order(request: Request[Any, Any, Any], services: Services, caller: Caller) -> Intake:
    """Read and settle what a client asks for.

    Raises:
        InvalidRequest, UnknownModel: naming the field; and what `read_json` raises.
    """
    data = await read_json(request)
    await services.gate.recheck(caller)
    body, key = read_body(data), client_key(request.headers, data)
    return Intake(body, order_of(body, services.catalog, caller, request.headers.get("traceparent")), key)
