"""Is the process alive, and may it be sent work?"""

from typing import Any

from litestar import Controller, Response, get
from litestar.di import NamedDependency

from server.catalogue import Catalogue
from server.identity.guard import PUBLIC
from server.playground import iso
from server.state import Services


class Health(Controller):
    """For supervisors and load balancers."""

    tags = ["health"]

    @get("/health", opt=PUBLIC, sync_to_thread=False)
    def health(self, services: NamedDependency[Services]) -> Response[dict[str, str]]:
        """200; 503 and why, once the scheduler has stopped or the device was lost, which only a restart mends."""
        dead = services.readiness.dead
        if dead is not None:
            return Response({"status": "stopped", "reason": dead}, status_code=503)
        return Response({"status": "ok"})

    @get("/ready", opt=PUBLIC, sync_to_thread=False)
    def ready(self, services: NamedDependency[Services]) -> Response[dict[str, Any]]:
        """200 when the default model can be used and the scheduler works; else 503 and why not."""
        missing = services.missing
        body = {
            "status": "unready" if missing else "ready",
            "missing": missing,
            "models": services.scheduler.resident,
            "broken_models": services.broken,
            "queue": services.scheduler.depth,
            "catalogue": _fault(services.catalogue),
        }
        return Response(body, status_code=503 if missing else 200)


def _fault(catalogue: Catalogue) -> dict[str, str] | None:
    """What is wrong with models.toml, so that a catalogue read before is in force; None when nothing is."""
    fault = catalogue.fault
    return None if fault is None else {"error": fault.told, "since": iso(fault.since)}
