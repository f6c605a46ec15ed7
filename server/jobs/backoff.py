"""Another attempt: whether a job has one after an error, when, and whether the last one counts."""

import random

from server.answers import explain
from storage.errors import DiskFull
from storage.records import JobRecord

BACKOFF_SECONDS = 5.0
"""Until a job's second attempt; each further one waits twice as long, and all of them are scattered."""

MOST_BACKOFF_SECONDS = 300.0

ROOM_SECONDS = 60.0
"""Until a job is tried again that found the disk full."""


def passes(job: JobRecord, error: Exception) -> bool:
    """Whether a job that failed so is tried again: the error passes by itself, and an attempt is left."""
    return explain(error)[0].retry and (job.attempts < job.max_attempts or not spends(error))


def spends(error: Exception) -> bool:
    """Whether an attempt that failed so counts. A full disk is no fault of the job's, however long it lasts."""
    return not isinstance(error, DiskFull)


def backoff(job: JobRecord, error: Exception) -> float:
    """Seconds until the next attempt."""
    longer = BACKOFF_SECONDS * 2 ** max(0, job.attempts - 1) if spends(error) else ROOM_SECONDS
    return min(MOST_BACKOFF_SECONDS, longer) * random.uniform(0.5, 1.0)
