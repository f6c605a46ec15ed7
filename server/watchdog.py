"""The watchdog: it notices work that hangs on the GPU thread, and gives the thread up."""

import asyncio
from time import monotonic

from pipelines.errors import DeviceLost
from server.gpu import WorkerThread

LOOK_SECONDS = 1.0


async def watch(gpu: WorkerThread) -> None:
    """Look every second, until some work takes longer than its patience; whoever waits for it is raised DeviceLost.

    What counts is the time the watchdog itself saw pass: a process that was stopped, or a machine that slept, has
    not been working.
    """
    work, seen, looked = gpu.present, 0.0, monotonic()
    while work is None or seen <= work.patience:
        await asyncio.sleep(LOOK_SECONDS)
        now = monotonic()
        passed = min(now - looked, 2 * LOOK_SECONDS)
        looked = now
        if gpu.present is not work:
            work, seen = gpu.present, 0.0
        elif work is not None:
            seen += passed
    gpu.give_up(
        DeviceLost(
            f"The device hangs: work that may take {work.patience:.0f} s has run for {monotonic() - work.began:.0f} s;"
            " only a new process gets it back."
        )
    )
