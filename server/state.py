"""What the routes may reach: the parts of a running server, by type."""

from dataclasses import dataclass, field

from pipelines.catalog import Catalog
from server.jobs import Jobs
from server.scheduling.loop import Scheduler
from server.settings import Settings

LOCAL_OWNER = "local"
"""Everybody, while nobody is asked who they are."""


@dataclass
class Readiness:
    """Why the server cannot take work, by cause; empty when it can."""

    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Services:
    """The parts of a running server."""

    settings: Settings
    catalog: Catalog
    scheduler: Scheduler
    jobs: Jobs
    readiness: Readiness
