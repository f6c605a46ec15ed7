"""Making pictures in this process, without a server: the same settling, scheduler and engine, no database."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipelines.device import pick_device
from pipelines.engine import Engine
from pipelines.errors import InvalidRequest
from pipelines.families import family_facts
from pipelines.hashing import CACHE_NAME
from pipelines.infotext import metadata
from pipelines.models_toml import load_catalog
from server.generation import image_format, order_of, read_body
from server.gpu import WorkerThread
from server.identity.caller import LOCAL
from server.jobs.orders import Order
from server.scheduling.loop import Scheduler
from server.scheduling.queue import Picture, Ticket
from server.settings import Settings
from server.weights import WeightHashes
from storage.encoding import encode


def generate_files(settings: Settings, fields: dict[str, Any], output: Path | None) -> list[Path]:
    """Make the pictures a request asks for and write them; several are numbered.

    Raises:
        PipelineError: the request or the model is at fault.
    """
    if output is not None:
        image_format(output.suffix.removeprefix(".") or "png")
        if not output.absolute().parent.is_dir():
            raise InvalidRequest("output", f"There is no folder {output.absolute().parent}.")
        fields = fields | {"output_format": output.suffix.removeprefix(".") or "png"}
    order = order_of(read_body(fields), load_catalog(settings.models, family_facts()), LOCAL)
    outcomes, model_hash = asyncio.run(_make(settings, order))
    written = []
    for path, request, outcome in zip(_paths(output, order), order.requests, outcomes, strict=True):
        if isinstance(outcome, Picture):
            story = metadata(request, order.entry, model_hash)
            path.write_bytes(encode(outcome.image, order.format, story, order.compression))
            written.append(path)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome  # after the pictures that were made: one failure loses none of them
    return written


async def _make(settings: Settings, order: Order) -> tuple[Sequence[Picture | BaseException], str | None]:
    """In each image's place its picture, or why there is none; and the hash of the weights that made them."""
    # The server's cache where there has been a server; no folder is made for it.
    weights = WeightHashes(settings.data / CACHE_NAME if settings.data.is_dir() else None)
    weights.begin(order.entry)
    try:
        outcomes = await _pictures(settings, order)
        made = any(isinstance(outcome, Picture) for outcome in outcomes)
        return outcomes, await weights.of(order.entry) if made else None
    finally:
        weights.halt()


async def _pictures(settings: Settings, order: Order) -> Sequence[Picture | BaseException]:
    gpu, loader = WorkerThread("gpu"), WorkerThread("loader")
    folder = settings.data if settings.data.is_dir() else None
    device = pick_device(settings.device)
    engine = await gpu(Engine, device, device.budgets(settings.vram_budget, settings.ram_budget), folder)
    scheduler = Scheduler(engine, gpu, loader, max_rows=settings.max_rows, queue_limit=len(order.requests))
    worker = asyncio.create_task(scheduler.run())
    try:
        total = sum(request.steps for request in order.requests)
        with tqdm(total=total, desc=f"loading {order.entry.name}", unit="step", bar_format=_BAR) as bar:
            tickets: list[Ticket] = []

            def watch(_: Ticket) -> None:
                done = sum(ticket.request.steps if _made(ticket) else ticket.step for ticket in tickets)
                if done:
                    bar.set_description_str("denoising" if done < total else "decoding", refresh=False)
                bar.n = done
                bar.refresh()

            for request in order.requests:
                tickets.append(scheduler.submit(order.entry, request, watch=watch))
            return await asyncio.gather(*(ticket.future for ticket in tickets), return_exceptions=True)
    finally:
        worker.cancel()
        await asyncio.wait({worker})
        loader.close()
        gpu.close()


def _made(ticket: Ticket) -> bool:
    return not ticket.live and not ticket.future.cancelled() and ticket.future.exception() is None


_BAR = "{desc}: {bar} {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}]"


def _paths(output: Path | None, order: Order) -> list[Path]:
    """The files to write; without a name from the user, one made of the prompt's own words."""
    if output is None:
        words = re.findall(r"[a-z0-9]+", order.requests[0].prompt.lower())[:6] or ["picture"]
        output = Path(f"{'-'.join(words)}-{order.requests[0].seed}.{order.format.value}")
    if len(order.requests) == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{index}") for index in range(1, len(order.requests) + 1)]
