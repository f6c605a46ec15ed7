"""A graceful stop: no new work, what is begun comes to its end, the rest is left to the next run or told so."""

import asyncio
import logging

from server.scheduling.queue import Stage
from server.state import Services

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05

STOPPING = "the server is stopping"


async def drain(services: Services, grace: float) -> None:
    """Let pictures that are begun come to their end for so many seconds, while the server answers 503 to new ones.

    Jobs of which nothing is begun end at once, the others after that: those for which nobody waits stay queued for the
    next run, and whoever waits hears that theirs was interrupted.
    """
    services.readiness.missing["stopping"] = STOPPING
    services.jobs.wind_down()
    services.scheduler.pause(True, STOPPING)  # not for the next run: that is the switch of `Jobs.pause`
    at_work = len(_begun(services))
    log.info("stopping%s", f": {grace:g} s for what is begun (pictures: {at_work})" if at_work else "")
    try:
        async with asyncio.timeout(grace):
            while _begun(services) or services.jobs.finishing:
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        log.warning("%d pictures did not come to their end in time", len(_begun(services)))
    services.jobs.stop()


def _begun(services: Services) -> list[int]:
    line = services.scheduler.line.tickets
    return [ticket.order for ticket in line if ticket.stage is not Stage.WAITING]
