"""The two servers that Darkroom is measured against: stock diffusers behind a lock, and behind a window."""

import asyncio
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from litestar import Litestar, Request, post
from PIL.Image import Image

from pipelines.infotext import metadata
from pipelines.request import ImageRequest
from server.generation import order_of, read_body
from server.gpu import WorkerThread
from server.identity.caller import LOCAL
from storage.encoding import encode
from storage.media import ImageFormat

from .models import Model, StockPipeline
from .observing import Observer

WINDOW_SECONDS = 0.5
WINDOW_IMAGES = 4


class Baseline(ABC):
    """One stock pipeline and the thread it loads and runs on."""

    def __init__(self, model: Model, observer: Observer) -> None:
        self._model = model
        self._observer = observer
        self._thread = WorkerThread("pipeline")

    async def load(self) -> None:
        """Load on the very thread that computes: anywhere else it would cost the baseline half its speed on a CPU."""
        self._pipeline = await self._thread(StockPipeline, self._model)

    @abstractmethod
    async def picture(self, request: ImageRequest) -> Image:
        """The picture of one request, whenever its turn comes."""

    @abstractmethod
    async def run(self) -> None:
        """The work that goes on beside the requests."""

    async def _pictures(self, requests: Sequence[ImageRequest]) -> list[Image]:
        seeds = [request.seed for request in requests]
        return await self._thread(self._pipeline.pictures, requests, lambda: self._observer.stepped(seeds))


class Lock(Baseline):
    """One pipeline behind a lock, first come first served: what people write today."""

    def __init__(self, model: Model, observer: Observer) -> None:
        super().__init__(model, observer)
        self._lock = asyncio.Lock()

    async def picture(self, request: ImageRequest) -> Image:
        async with self._lock:
            return (await self._pictures([request]))[0]

    async def run(self) -> None:
        """Nothing: each request does its own work."""


@dataclass(eq=False)
class _Waiting:
    """A request that waits for its window."""

    request: ImageRequest
    future: asyncio.Future[Image]
    since: float = field(default_factory=monotonic)

    @property
    def parameters(self) -> ImageRequest:
        """Everything that one pipeline call has in common."""
        return replace(self.request, prompt="", seed=0)


class Window(Baseline):
    """Waits half a second from the eldest request for others like it, then makes up to four in one call.

    Requests that arrive while a call runs have waited already, so a busy server adds no delay of its own.
    """

    def __init__(self, model: Model, observer: Observer) -> None:
        super().__init__(model, observer)
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()

    async def picture(self, request: ImageRequest) -> Image:
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.future

    async def run(self) -> None:
        while True:
            batch = await self._batch()
            try:
                pictures = await self._pictures([waiting.request for waiting in batch])
            except Exception as error:
                for waiting in batch:
                    waiting.future.set_exception(error)
            else:
                for waiting, picture in zip(batch, pictures, strict=True):
                    waiting.future.set_result(picture)

    async def _batch(self) -> list[_Waiting]:
        while True:
            self._arrived.clear()
            alike = [one for one in self._waiting if one.parameters == self._waiting[0].parameters][:WINDOW_IMAGES]
            left = alike[0].since + WINDOW_SECONDS - monotonic() if alike else None
            if left is not None and (left <= 0 or len(alike) == WINDOW_IMAGES):
                self._waiting = [one for one in self._waiting if one not in alike]
                return alike
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)


BASELINES: dict[str, type[Baseline]] = {"lock": Lock, "window": Window}


def create_baseline(name: str, model: Model, observer: Observer) -> Litestar:
    """A server that reads the same requests as Darkroom and answers with the same PNG, by a baseline."""

    @asynccontextmanager
    async def running(app: Litestar) -> AsyncIterator[None]:
        baseline = app.state.baseline = BASELINES[name](model, observer)
        await baseline.load()
        worker = asyncio.create_task(baseline.run())
        yield
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker

    @post("/v1/images/generations", status_code=200)
    async def generate(request: Request[Any, Any, Any]) -> dict[str, Any]:
        settled = order_of(read_body(await request.json()), model.catalog, LOCAL).requests[0]
        image = await request.app.state.baseline.picture(settled)
        content = await asyncio.to_thread(encode, image, ImageFormat.PNG, metadata(settled, model.entry))
        return {"data": [{"b64_json": b64encode(content).decode("ascii")}]}

    return Litestar(route_handlers=[generate], lifespan=[running], logging_config=None)
