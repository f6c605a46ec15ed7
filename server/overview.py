"""What a server is doing and what it can do, as facts for people and programs: the queue and the capabilities."""

from collections.abc import Collection
from functools import cache
from importlib.metadata import version
from time import monotonic
from typing import Literal

from pipelines.catalog import Catalog, ModelEntry, name_of
from pipelines.levers import QUALITY_STEPS
from pipelines.quality import with_quality
from pipelines.request import MAX_GUIDANCE, MAX_PROMPT_CHARACTERS, BatchKey, Wishes
from pipelines.samplers import SAMPLERS, Prediction
from server.facts import Capabilities, ModelFacts, Queue, QueueImage, Recent, SamplerFacts, Shape
from server.generation_body import MAX_DEADLINE, MAX_IMAGES, MAX_PRIORITY
from server.metrics import MOST_SIZES, Metrics
from server.recent import WINDOW_SECONDS
from server.scheduling.loop import Scheduler
from server.scheduling.queue import Stage, Ticket
from server.settings import Settings
from storage.media import ImageFormat

FORECAST_LOOKS = 4_000
"""Looks at an image that one forecast for onlookers may take: on the event loop, where steps wait for them."""

PAUSE = 10
"""A forecast serves every onlooker until this many times its own duration has gone by."""


class Overview:
    """Looks at a scheduler for onlookers, who are many and impatient. Used on the event loop only."""

    def __init__(self, scheduler: Scheduler, metrics: Metrics) -> None:
        self._scheduler = scheduler
        self._metrics = metrics
        self._ends: dict[int, float] = {}
        self._next_forecast = 0.0

    def queue(self, limit: int) -> Queue:
        """The images that wait or run, at most `limit` of them: those begun, then those done next."""
        tickets = self._scheduler.line.tickets
        now, ends = monotonic(), self.ends()
        tickets.sort(key=lambda ticket: (ticket.stage is Stage.WAITING, ends.get(ticket.order, float("inf"))))
        line = [ticket.order for ticket in tickets if ticket.stage is Stage.WAITING]
        places = {order: place for place, order in enumerate(line)}
        left = [end - now for order, end in ends.items()]
        paused = bool(self._scheduler.pauses)
        return {
            "queueLength": len(places),
            "processingCount": len(tickets) - len(places),
            "paused": paused,
            "averageWaitTime": _known(self._metrics.waits.mean),
            "estimatedProcessingTime": None if paused else _rounded(max([0.0, *left])),
            "backlogSeconds": _rounded(self._scheduler.outlook.backlog(tickets)),
            "retryAfter": self._scheduler.outlook.retry_after(tickets),
            "images": [_image(ticket, places.get(ticket.order), ends, now) for ticket in tickets[:limit]],
            "recent": self._recent(),
            "totals": {
                "pictures": self._metrics.totals["pictures"],
                "failures": self._metrics.totals["failures"],
                "refusals": self._metrics.totals["refusals"],
            },
        }

    def _recent(self) -> Recent:
        return {
            "seconds": WINDOW_SECONDS,
            "picturesPerSecond": _rounded(self._metrics.pictures.per_second),
            "rowsPerStep": _known(self._metrics.rows.mean),
        }

    def ends(self) -> dict[int, float]:
        """When each image will be done, on the monotonic clock, by order; one that has just come may be absent."""
        began, tickets = monotonic(), self._scheduler.line.tickets
        if began >= self._next_forecast:
            ends = self._scheduler.outlook.ends(tickets, FORECAST_LOOKS)
            self._ends = {ticket.order: began + end for ticket, end in zip(tickets, ends, strict=True)}
            self._next_forecast = monotonic() + PAUSE * (monotonic() - began)
        return {ticket.order: self._ends[ticket.order] for ticket in tickets if ticket.order in self._ends}

    def capabilities(self, settings: Settings, catalog: Catalog, broken: Collection[str]) -> Capabilities:
        """The device, the limits, and each model: what it can do, where it is, what its steps cost here."""
        visits = self._scheduler.visits
        facts = visits.engine.facts
        return {
            "version": version("darkroom"),
            "device": {
                "name": facts.name,
                "kind": facts.kind,
                "dtype": facts.dtype,
                "memoryBytes": facts.memory_bytes,
                "memoryUsedBytes": visits.state.memory_used,
            },
            "limits": {
                "maxRows": settings.max_rows,
                "queueLimit": settings.queue_limit,
                "queueSeconds": settings.queue_seconds,
                "n": MAX_IMAGES,
                "promptCharacters": MAX_PROMPT_CHARACTERS,
                "guidanceScale": MAX_GUIDANCE,
                "priority": MAX_PRIORITY,
                "deadline": MAX_DEADLINE,
            },
            "formats": list(ImageFormat),
            "families": sorted({entry.family for entry in catalog.entries.values()}),
            "models": [self._model(entry, catalog.default, entry.name in broken) for entry in catalog.entries.values()],
        }

    def _model(self, entry: ModelEntry, default: str, broken: bool) -> ModelFacts:
        visits = self._scheduler.visits
        loading = self._scheduler.models.loading
        coming = loading is not None and loading.model == entry.name
        return {
            "name": entry.name,
            "default": entry.name == default,
            "aliases": entry.aliases,
            "family": entry.family,
            "dtype": visits.engine.facts.dtype if entry.dtype == "auto" else entry.dtype,
            "state": "loading" if coming else self._place(entry, broken),
            "loading": {
                "stage": loading.stage,
                "share": loading.share,
                "seconds": _rounded(monotonic() - loading.since),
            }
            if loading is not None and coming
            else None,
            "weightBytes": visits.state.weight_bytes.get(entry.identity),
            "sizes": {
                "default": f"{entry.width}x{entry.height}",
                "native": entry.native_sizes,
                "step": entry.size_step,
                "maxPixels": entry.max_pixels,
                "maxSide": entry.max_side,
            },
            "steps": entry.steps,
            "guidanceScale": entry.guidance_scale,
            "sampler": entry.sampler,
            "schedule": entry.schedule,
            "qualities": {word: with_quality(word, Wishes(""), entry)[1].steps for word in ("draft", *QUALITY_STEPS)},
            "samplers": _samplers(entry.prediction),
            "price": entry.price.told,
            "shapes": self._shapes(entry.identity),
        }

    def _place(self, entry: ModelEntry, broken: bool) -> Literal["resident", "parked", "broken", "absent"]:
        """Where a model is that is not on its way."""
        state = self._scheduler.visits.state
        if entry.identity in state.resident:
            return "resident"
        return "parked" if entry.identity in state.parked else "broken" if broken else "absent"

    def _shapes(self, identity: str) -> list[Shape]:
        """What a step costs at the sizes of which steps ran, the first MOST_SIZES."""
        cost, shapes = self._scheduler.books.cost, list[Shape]()
        for (width, height), rows in list(cost.seen(identity).items())[:MOST_SIZES]:
            key = BatchKey(identity, width, height)
            cap = self._scheduler.cap(key)
            seconds = {str(count): _rounded(cost.step_seconds(key, count)) for count in sorted(rows)}
            shape: Shape = {
                "width": width,
                "height": height,
                "cap": cap,
                "knee": cost.knee(key, cap),
                "stepSeconds": seconds,
            }
            shapes.append(shape)
        return shapes


@cache
def _samplers(prediction: Prediction) -> list[SamplerFacts]:
    """The samplers of models of one kind, with the schedules and the most steps that each takes."""
    methods = ((name, sampler.method(prediction)) for name, sampler in SAMPLERS.items())
    return [
        {"name": name, "schedules": sorted(method.schedules), "maxSteps": method.max_steps}
        for name, method in methods
        if method is not None
    ]


def _image(ticket: Ticket, place: int | None, ends: dict[int, float], now: float) -> QueueImage:
    """One image's facts, but for what is its owner's alone."""
    end = ends.get(ticket.order)
    return {
        "id": ticket.order,
        "position": place,
        "stage": ticket.stage,
        "model": name_of(ticket.key.model),
        "width": ticket.request.width,
        "height": ticket.request.height,
        "step": ticket.step,
        "steps": ticket.request.steps,
        "priority": ticket.priority,
        "estimatedTimeRemaining": None if end is None else _rounded(max(0.0, end - now)),
        "waited": _rounded((ticket.started or now) - ticket.submitted),
    }


def _rounded(seconds: float) -> float:
    """To a tenth of a millisecond, which no clock here is better than."""
    return round(seconds, 4)


def _known(seconds: float | None) -> float | None:
    return None if seconds is None else _rounded(seconds)
