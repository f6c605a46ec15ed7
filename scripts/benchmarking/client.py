"""The load generator: sends a trace at its own times, whatever the server does, and notes each request's fate."""

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any

import httpx

from .statistics import Served
from .workload import Arrival

PNG_AS_BASE64 = "iVBORw0KGgo"
"""How every PNG begins in base64."""


async def play(url: str, trace: Sequence[Arrival], patience: float) -> tuple[float, list[Served]]:
    """Send a trace, open loop, and wait for every picture.

    Args:
        patience: seconds after which what is still open is given up.

    Returns:
        when the trace began, and each request's fate, in the order of the trace.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as client:
        began = monotonic()
        return began, await asyncio.gather(
            *(_send(client, arrival, began + arrival.at, began + patience) for arrival in trace)
        )


async def send_one(url: str, arrival: Arrival, patience: float) -> Served:
    """Send one request now and wait for its picture."""
    return (await play(url, [Arrival(0.0, arrival.kind, arrival.body)], patience))[1][0]


async def _send(client: httpx.AsyncClient, arrival: Arrival, due: float, end: float) -> Served:
    await asyncio.sleep(due - monotonic())
    error: str | None = "unfinished"
    done = promised = None
    try:
        async with asyncio.timeout(end - monotonic()):
            response = await client.post("/v1/images/generations", json=arrival.body)
            done = monotonic()
            error = _fault(response)
            promised = None if error else response.json().get("estimatedTime")
    except TimeoutError:
        pass
    except httpx.HTTPError as failure:
        error = type(failure).__name__
    return Served(arrival.kind, arrival.body["seed"], due, None if error else done, error, promised=promised)


def _fault(response: httpx.Response) -> str | None:
    """What is wrong with an answer; None if there is a picture in it."""
    if response.status_code != 200:
        return f"HTTP {response.status_code}"
    data: Any = response.json()["data"]
    return None if data and data[0].get("b64_json", "").startswith(PNG_AS_BASE64) else "no picture"
