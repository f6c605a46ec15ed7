"""What the routes may reach: the parts of a running server, by type."""

from dataclasses import dataclass, field

from pipelines.catalog import Catalog
from server.errors import ModelUnavailable
from server.jobs import Jobs
from server.metrics import Metrics
from server.overview import Overview
from server.scheduling.loop import Scheduler
from server.settings import Settings

LOCAL_OWNER = "local"
"""Everybody, while nobody is asked who they are."""


@dataclass
class Readiness:
    """What the server waits for before it can take work, by cause."""

    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Services:
    """The parts of a running server."""

    settings: Settings
    catalog: Catalog
    scheduler: Scheduler
    jobs: Jobs
    readiness: Readiness
    metrics: Metrics
    overview: Overview

    @property
    def missing(self) -> dict[str, str]:
        """Why the server cannot take work, by cause; empty when it can."""
        default = self.catalog.default
        broken = {"models": str(ModelUnavailable(default))} if default in self.jobs.broken else {}
        return self.readiness.missing | broken
