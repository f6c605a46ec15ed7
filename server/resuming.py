"""Jobs whose engine was lost under an earlier run of the server: this run carries them to their end."""

import asyncio
import logging

from server.catalogue import Catalogue
from server.errors import Interrupted
from server.jobs import Jobs
from server.orders import from_job
from server.scheduling.queue import QueueFull
from storage.records import JobRecord

log = logging.getLogger(__name__)


async def resume(jobs: Jobs, catalogue: Catalogue) -> None:
    """Carry them out one after the other, so that one which breaks the engine again takes none of the others along.

    For the same reason those under which it broke least often go first.
    """
    for job in sorted(await jobs.lost(), key=lambda job: job.losses):
        log.info("job %s goes on, under which the engine was lost", job.id)
        try:
            await _resume(jobs, job, catalogue)
        except Interrupted:
            return
        except Exception as error:
            log.warning("job %s failed: %s", job.id, error)


async def _resume(jobs: Jobs, job: JobRecord, catalogue: Catalogue) -> None:
    """Raises why the job failed; its row says so too."""
    try:
        order = from_job(job, catalogue.present)
    except Exception as error:
        await jobs.refuse(job, error)
        raise
    while True:
        try:
            await jobs.run(order, job)
            return
        except QueueFull as full:  # those who wait for their pictures go first
            await asyncio.sleep(full.retry_after)
