"""What came of a job that was completed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.request import TokenCount
from server.errors import Cancelled, Interrupted, JobFailed
from storage.errors import PicturesDeleted
from storage.images import ImageStore
from storage.records import ImageRecord, JobRecord, JobStatus


@dataclass(frozen=True)
class Result:
    """A completed job and its pictures. All of it is read from the database, so it can be told again at any time."""

    job: JobRecord
    images: Sequence[ImageRecord]

    @property
    def seconds(self) -> float:
        """From the first work on its pictures to the last."""
        return float(self._outcome["seconds"])

    @property
    def promised(self) -> float:
        """How many seconds it was expected to take when it came."""
        return float(self._outcome["promised"])

    @property
    def failures(self) -> dict[int, str]:
        """Why pictures are missing, by their places."""
        return {int(index): reason for index, reason in self._outcome["failures"].items()}

    @property
    def prompt(self) -> TokenCount:
        return TokenCount(**self._outcome["prompt"])

    @property
    def negative_prompt(self) -> TokenCount:
        return TokenCount(**self._outcome["negative_prompt"])

    @property
    def _outcome(self) -> Mapping[str, Any]:
        """As `Runner` wrote it; a job of an earlier version has none."""
        return self.job.outcome or NO_OUTCOME


NO_OUTCOME: Mapping[str, Any] = {"seconds": 0, "promised": 0, "failures": {}, "prompt": {}, "negative_prompt": {}}


async def result_of(job: JobRecord, images: ImageStore) -> Result:
    """What came of a job that ended.

    Raises:
        Cancelled, JobFailed: there are no pictures; PicturesDeleted: there are none any more; Interrupted: not yet.
    """
    if job.status is JobStatus.COMPLETED:
        if found := await images.of_job(job.owner_id, job.id):
            return Result(job, found)
        raise PicturesDeleted(job.id)
    if job.status is JobStatus.CANCELLED:
        raise Cancelled(job.id)
    if job.status is JobStatus.FAILED:
        raise JobFailed(job.error_code or "", job.error_message or "")
    raise Interrupted
