"""Is the process alive, and may it be sent work?"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypedDict

from litestar import Controller, Response, get
from litestar.di import NamedDependency

from server.catalogue import Catalogue
from server.identity.guard import PUBLIC
from server.playground import iso
from server.schemas import Moment, documents, says
from server.state import Services


class Alive(TypedDict):
    """The scheduler works."""

    status: Literal["ok"]


class Stopped(TypedDict):
    """Nothing but a restart will mend it."""

    status: Literal["stopped"]
    reason: Annotated[str, says("Why the scheduler works no more.")]


class CatalogueFault(TypedDict):
    """Why an edit of models.toml cannot be used; the catalogue from before goes on being served."""

    error: Annotated[str, says("What is wrong, beginning with its place in the file.")]
    since: Annotated[Moment, says("When that was first seen.")]


class Readiness(TypedDict):
    """Whether the server can take work, and what it has."""

    status: Literal["ready", "unready"]
    missing: Annotated[dict[str, str], says("Why it is not ready, by cause.")]
    models: Annotated[Sequence[str], says("Those in memory.")]
    broken_models: Annotated[list[str], says("Those that could not be loaded when they were last wanted.")]
    queue: Annotated[int, says("How many pictures wait or run.", minimum=0)]
    catalogue: CatalogueFault | None


class Health(Controller):
    """For supervisors and load balancers."""

    tags = ["health"]

    @get("/health", opt=PUBLIC | documents(answers={200: Alive, 503: Stopped}), sync_to_thread=False)
    def health(self, services: NamedDependency[Services]) -> Response[Alive | Stopped]:
        """200; 503 and why, once the scheduler has stopped or the device was lost, which only a restart mends."""
        dead = services.readiness.dead
        if dead is not None:
            return Response(Stopped(status="stopped", reason=dead), status_code=503)
        return Response(Alive(status="ok"))

    @get("/ready", opt=PUBLIC | documents(answers={503: Readiness}), sync_to_thread=False)
    def ready(self, services: NamedDependency[Services]) -> Response[Readiness]:
        """200 when the default model can be used and the scheduler works; else 503 and why not."""
        missing = services.missing
        body: Readiness = {
            "status": "unready" if missing else "ready",
            "missing": missing,
            "models": services.scheduler.resident,
            "broken_models": services.broken,
            "queue": services.scheduler.depth,
            "catalogue": _fault(services.catalogue),
        }
        return Response(body, status_code=503 if missing else 200)


def _fault(catalogue: Catalogue) -> CatalogueFault | None:
    """What is wrong with models.toml, so that a catalogue read before is in force; None when nothing is."""
    fault = catalogue.fault
    return None if fault is None else {"error": fault.told, "since": iso(fault.since)}
