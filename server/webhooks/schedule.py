"""When a delivery is tried again, and when it is given up. Pure: no clock, no network."""

import random
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from server.outbound.client import Reply
from storage.webhook_records import Attempt

DELAYS = tuple(timedelta(seconds=seconds) for seconds in (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400))
"""After each failed attempt but the last, until the next: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h.

They are those that Standard Webhooks 1.0.0 proposes: ten attempts within 75 hours and 35 minutes.
"""

SCATTER = 0.1
"""Each delay is longer by up to this share, so that what failed together is not tried again all at once."""

MOST_RETRY_AFTER = timedelta(hours=6)
"""What an endpoint may ask for with Retry-After."""

GONE = 410


def answered(reply: Reply, made: int, now: datetime) -> Attempt:
    """What an answer comes to. Only a 2xx is a success; a redirection is not followed.

    Args:
        made: how many attempts there were before this one.
    """
    if 200 <= reply.status < 300:
        return Attempt(at=now, status_code=reply.status)
    if reply.status == GONE:
        return Attempt(at=now, status_code=reply.status, error="The endpoint wants nothing more (410).", gone=True)
    resume_at = _retry_after(reply.headers.get("retry-after", ""), now)
    return _failed(f"The endpoint answered {reply.status}.", made, now, reply.status, resume_at)


def unanswered(reason: str, made: int, now: datetime) -> Attempt:
    """What it comes to that there was no answer."""
    return _failed(reason, made, now)


def _failed(
    reason: str, made: int, now: datetime, status: int | None = None, resume_at: datetime | None = None
) -> Attempt:
    next_at = None
    if made < len(DELAYS):
        next_at = max(now + DELAYS[made] * random.uniform(1, 1 + SCATTER), resume_at or now)
    return Attempt(at=now, status_code=status, error=reason, next_at=next_at, resume_at=resume_at)


def _retry_after(written: str, now: datetime) -> datetime | None:
    """The header's seconds or date as a moment within bounds; None for none, or one that makes no sense."""
    if written.isascii() and written.isdigit():
        return now + min(timedelta(seconds=int(written[:9])), MOST_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(written)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(moment, now), now + MOST_RETRY_AFTER)
