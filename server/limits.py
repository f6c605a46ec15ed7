"""What an owner may ask for: the settings' bounds, and how near an owner is to them. Operators have none."""

from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Annotated, TypedDict

from server.identity.caller import Caller
from server.schemas import says
from server.settings import Settings
from storage.admissions import Admissions
from storage.records import Terms

MEGAPIXEL = 1_000_000
ALLOWANCE = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")


class Left(TypedDict):
    """A limit, and what is left of it."""

    limit: float
    left: Annotated[float, says("What may still be asked for now.", minimum=0)]


class Bound(TypedDict):
    """A limit."""

    limit: int


class OwnerLimits(TypedDict):
    """What an owner may ask for; null where there is no limit."""

    requestsPerHour: Left | None
    megapixelStepsPerHour: Left | None
    jobsQueued: Annotated[Left | None, says("Of jobs that wait.")]
    jobsAtOnce: Annotated[Bound | None, says("Of jobs that are at work; more wait.")]


@dataclass(frozen=True)
class Limits:
    """The bounds of each owner who is not an operator; 0 is none. `credits` says whether its jobs are paid for."""

    requests_per_hour: int = 0
    megapixel_steps_per_hour: int = 0
    jobs_queued: int = 0
    jobs_at_once: int = 0
    credits: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        return cls(
            requests_per_hour=settings.requests_per_hour,
            megapixel_steps_per_hour=settings.megapixel_steps_per_hour,
            jobs_queued=settings.jobs_queued,
            jobs_at_once=settings.jobs_at_once,
            credits=settings.credits == "on",
        )

    def terms(self, patience: float) -> Terms:
        """What counts when a job is handed in.

        Args:
            patience: seconds after which one that has too many jobs waiting may try again.
        """
        return Terms(
            requests=self.requests_per_hour,
            pixel_steps=self.megapixel_steps_per_hour * MEGAPIXEL,
            queued=self.jobs_queued,
            patience=patience,
            credits=self.credits,
        )


NO_LIMITS = Limits()


class Allowances:
    """What is left to owners of what they may ask for."""

    def __init__(self, limits: Limits, admissions: Admissions) -> None:
        self._limits = limits
        self._admissions = admissions

    async def headers(self, caller: Caller) -> dict[str, str]:
        """What the answer to a job that was handed in says of the caller's requests, in OpenAI's spelling."""
        limit = self._limits.requests_per_hour
        if caller.is_operator or not limit:
            return {}
        standing = await self._admissions.standing(caller.owner_id)
        left = standing.clear_at - datetime.now(UTC) if standing.clear_at else None
        return {
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(max(0, limit - standing.requests)),
            "x-ratelimit-reset-requests": spelled(left.total_seconds() if left else 0),
        }

    async def told(self, owner_id: str) -> OwnerLimits:
        """Each limit and what is left of it; null where there is none."""
        standing, limits = await self._admissions.standing(owner_id), self._limits
        return {
            "requestsPerHour": _left(limits.requests_per_hour, standing.requests),
            "megapixelStepsPerHour": _left(limits.megapixel_steps_per_hour, standing.pixel_steps / MEGAPIXEL),
            "jobsQueued": _left(limits.jobs_queued, standing.queued),
            "jobsAtOnce": {"limit": limits.jobs_at_once} if limits.jobs_at_once else None,
        }


def _left(limit: int, taken: float) -> Left | None:
    return {"limit": limit, "left": max(0, round(limit - taken, 3))} if limit else None


def spelled(seconds: float) -> str:
    """A duration as OpenAI's headers have it: 59s, 6m0s, 1h0m0s."""
    minutes, rest = divmod(max(0, ceil(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    longer = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{longer}{rest}s"
