"""What the routes may reach: the parts of a running server, by type."""

import asyncio
from dataclasses import dataclass, field

from pipelines.catalog import Catalog
from server.catalogue import Catalogue
from server.errors import ModelUnavailable
from server.identity.gate import Gate
from server.identity.links import Links
from server.jobs.feed import Feed
from server.jobs.jobs import Jobs
from server.jobs.progress import Progress
from server.limits import Allowances
from server.metrics import Metrics
from server.outbound.client import Outbound
from server.overview import Overview
from server.scheduling.loop import Scheduler
from server.settings import Settings
from server.weights import WeightHashes
from storage.credits import Credits
from storage.stats import Stats
from storage.webhooks import WebhookStore


@dataclass
class Readiness:
    """What the server waits for before it can take work, by cause; and whether its device was lost, which ends it."""

    missing: dict[str, str] = field(default_factory=dict)
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def dead(self) -> str | None:
        """Why nothing but a new process will ever compute again."""
        return self.missing.get("engine") or self.missing.get("scheduler")


@dataclass(frozen=True)
class Services:
    """The parts of a running server."""

    settings: Settings
    catalogue: Catalogue
    scheduler: Scheduler
    jobs: Jobs
    weights: WeightHashes
    readiness: Readiness
    metrics: Metrics
    overview: Overview
    progress: Progress
    feed: Feed
    stats: Stats
    gate: Gate
    links: Links
    allowances: Allowances
    credits: Credits
    webhooks: WebhookStore
    outbound: Outbound

    @property
    def catalog(self) -> Catalog:
        """The models that are offered at this moment."""
        return self.catalogue.present

    @property
    def broken(self) -> list[str]:
        """The names of the models that could not be loaded when they were last wanted."""
        return sorted(name for name, entry in self.catalog.entries.items() if entry.identity in self.jobs.broken)

    @property
    def missing(self) -> dict[str, str]:
        """Why the server cannot take work, by cause; empty when it can."""
        default = self.catalog.default
        broken = {"models": str(ModelUnavailable(default))} if default in self.broken else {}
        shortage = self.jobs.room.shortage
        full = {"disk": str(shortage)} if shortage else {}
        return self.readiness.missing | broken | full
