"""Preemption with the real engine: who waits goes first from the next step on, and who is overtaken loses nothing."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.catalog import Catalog, ModelEntry
from pipelines.denoising import Denoising
from pipelines.device import pick_device
from pipelines.engine import Engine
from pipelines.request import ImageRequest, Wishes, settle
from server.gpu import WorkerThread
from server.scheduling.loop import Scheduler
from server.scheduling.queue import Picture, Submission

pytestmark = pytest.mark.anyio

SAMPLERS = ("Euler", "Euler a", "DPM++ 2M", "DPM++ SDE")
BATCH = Submission(priority=-5, owner="robot")


class WatchedEngine(Engine):
    """Notes the seeds that rode each step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rode: list[list[int]] = []

    def step(self, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Exception | None]:
        self.rode.append([image.request.seed for image in batch])
        return super().step(entry, batch)


def wishes(entry: ModelEntry, seed: int, **changes: Any) -> ImageRequest:
    wish = Wishes("a hat", width=32, height=32, steps=12, sampler=SAMPLERS[seed % 4])
    return settle(replace(wish, **changes), entry, seed)


async def test_an_urgent_picture_starts_at_the_next_step_and_the_overtaken_ones_are_the_same(catalog: Catalog) -> None:
    entry = catalog.resolve("tiny-sdxl")
    requests = [wishes(entry, seed) for seed in range(8)]
    urgent = wishes(entry, 99, steps=4, width=64)
    gpu, loader = WorkerThread("gpu"), WorkerThread("loader")
    engine = await gpu(WatchedEngine, pick_device("cpu"))
    scheduler = Scheduler(engine, gpu, loader, max_rows=4, queue_limit=20)
    worker = asyncio.create_task(scheduler.run())
    try:
        alone = [(await scheduler.submit(entry, request).future).image for request in requests]
        engine.rode.clear()
        tickets = [scheduler.submit(entry, request, BATCH) for request in requests]
        while len(engine.rode) < 5:
            await asyncio.sleep(0.001)
        asked = len(engine.rode)
        picture = await scheduler.submit(entry, urgent, Submission(owner="anna")).future
        first = next(index for index, seeds in enumerate(engine.rode) if 99 in seeds)
        crowd = await asyncio.gather(*(ticket.future for ticket in tickets))
    finally:
        worker.cancel()
        await asyncio.wait({worker})
        loader.close()
        gpu.close()
    assert isinstance(picture, Picture)
    assert first <= asked + 2, "the step that ran, and one that may have been asked for already"
    assert [seeds for seeds in engine.rode[first : first + 4]] == [[99]] * 4, "it has the device to itself"
    assert any(len(seeds) > 1 for seeds in engine.rode), "the batch jobs ride together"
    for mine, solo in zip(crowd, alone, strict=True):
        difference = np.abs(np.asarray(mine.image, dtype=int) - np.asarray(solo, dtype=int)).max()
        assert difference <= 1, "the tolerance of a picture among other neighbours"
