"""Jobs at work when an earlier run of the server came to its end: this run carries them out, each by itself."""

import asyncio
import logging

from server.catalogue import Catalogue
from server.jobs.jobs import Jobs

log = logging.getLogger(__name__)


async def resume(jobs: Jobs, catalogue: Catalogue) -> None:
    """Carry them out one after the other, once those that were only waiting are done.

    One of them may be what ended that run. So none takes another along if it does that again, and those under which
    it happened least often go first.
    """
    suspects = [job for job in await jobs.store.pending(suspect=True) if jobs.find(job.id) is None]
    for job in sorted(suspects, key=lambda job: (job.losses, job.attempts)):
        await jobs.idle()
        log.info("job %s goes on, which was being processed when the server stopped", job.id)
        if (task := await jobs.restart(job, catalogue.present)) is not None:
            await asyncio.wait({task})
