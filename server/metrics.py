"""What is measured of a running server, in Prometheus' terms; docs/metrics.md says what each metric means."""

import shutil
from collections import Counter as Tally
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pipelines.catalog import name_of
from pipelines.request import BatchKey
from server.endings import JobEnd
from server.recent import Recent
from server.scheduling.loop import Scheduler
from server.scheduling.meter import Meter

MOST_SIZES = 20
"""Sizes that have a label of their own, the first seen; the rest share "other", for every label is kept for ever."""

_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_SHORT = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_LONG = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 45, 90, 180, 300, 600)
"""Upper bounds of histograms: of rows, and of seconds of the device and of waiting."""


class Metrics(Meter):
    """Hears what happens and keeps the count of it, for Prometheus and for whoever asks how the last minute was.

    Attributes:
        registry: of this server alone.
        pictures, rows, waits: the pictures kept, the rows of each step and the seconds waited of the last minute.
        totals: pictures, failures (of images) and refusals since the start.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.pictures, self.rows, self.waits = Recent(), Recent(), Recent()
        self.totals = Tally[str]()
        self._sizes: set[str] = set()
        ProcessCollector(registry=self.registry)
        self._wait = self._histogram("wait_seconds", "From submission to an image's first work", _LONG, "priority")
        self._rows = self._histogram("step_rows", "Rows of a forward pass", _ROWS, "model")
        self._step = self._histogram("step_seconds", "A forward pass and its samplers", _SHORT, "model", "size")
        self._encode = self._histogram("encode_seconds", "Beginning some images together", _SHORT, "model")
        self._decode = self._histogram("decode_seconds", "Decoding some images together", _SHORT, "model", "size")
        self._load = self._histogram("model_load_seconds", "Bringing a model to the device", _LONG, "model", "source")
        self._flops = self._counter("step_flops", "Floating-point operations of forward passes", "model")
        self._unloads = self._counter("model_unloads", "Models that left the device", "model", "destination")
        self._failures = self._counter("image_failures", "Images that failed while they were computed", "cause")
        self._refusals = self._counter("refusals", "Requests told to come back later: the queue was full")
        self._kept = self._counter("pictures", "Pictures made and recorded", "model")
        self._jobs = self._counter("jobs", "Jobs that came to an end", "end")

    def waited(self, priority: int, seconds: float) -> None:
        self.waits.add(seconds)
        self._wait.labels(priority).observe(seconds)

    def encoded(self, key: BatchKey, images: int, seconds: float) -> None:
        self._encode.labels(name_of(key.model)).observe(seconds)  # its images may be of several sizes

    def stepped(self, key: BatchKey, images: int, rows: int, seconds: float, flops: float) -> None:
        model = name_of(key.model)
        self.rows.add(rows)
        self._rows.labels(model).observe(rows)
        self._step.labels(model, self._size(key)).observe(seconds)
        self._flops.labels(model).inc(flops)

    def decoded(self, key: BatchKey, images: int, seconds: float) -> None:
        self._decode.labels(name_of(key.model), self._size(key)).observe(seconds)

    def loaded(self, model: str, parked: bool, seconds: float) -> None:
        self._load.labels(model, "host" if parked else "files").observe(seconds)

    def unloaded(self, model: str, parked: bool) -> None:
        self._unloads.labels(model, "host" if parked else "none").inc()

    def failed(self, cause: str) -> None:
        self.totals["failures"] += 1
        self._failures.labels(cause).inc()

    def refused(self) -> None:
        self.totals["refusals"] += 1
        self._refusals.inc()

    def job_ended(self, job: JobEnd) -> None:
        self._jobs.labels(job.end).inc()
        if job.kept:
            self.totals["pictures"] += job.kept
            self.pictures.add(job.kept)
            self._kept.labels(job.order.entry.name).inc(job.kept)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def _size(self, key: BatchKey) -> str:
        size = f"{key.width}x{key.height}"
        if len(self._sizes) < MOST_SIZES:
            self._sizes.add(size)
        return size if size in self._sizes else "other"

    def _histogram(self, name: str, what: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"darkroom_{name}", what, labels, registry=self.registry, buckets=bounds)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"darkroom_{name}", what, labels, registry=self.registry)


class Snapshot(Collector):
    """What is read off the scheduler and the disk whenever somebody asks, on the event loop.

    Args:
        data: the folder whose disk is to have room.
    """

    def __init__(self, scheduler: Scheduler, data: Path) -> None:
        self._scheduler = scheduler
        self._data = data

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing beforehand: registering must not ask for what is there only once the server runs."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        yield from self._queue()
        yield from self._models()
        yield from self._rows()
        yield from self._device()
        yield _gauge("disk_free_bytes", "Free on the data folder's disk", shutil.disk_usage(self._data).free)

    def _queue(self) -> Iterator[GaugeMetricFamily]:
        tickets = self._scheduler.line.tickets
        images = _labelled("queue_images", "Images that wait or run", "priority", "stage")
        for (priority, stage), count in Tally((ticket.priority, ticket.stage) for ticket in tickets).items():
            images.add_metric([str(priority), stage], count)
        yield images
        backlog = self._scheduler.outlook.backlog(tickets)
        yield _gauge("backlog_seconds", "What the device needs for all of them", backlog)

    def _models(self) -> Iterator[GaugeMetricFamily]:
        state = self._scheduler.visits.state
        there = _labelled("model_loaded", "1 for each model in memory", "model", "place")
        for place, models in (("device", state.resident), ("host", state.parked)):
            for name in dict.fromkeys(map(name_of, models)):
                there.add_metric([name, place], 1)
        yield there

    def _rows(self) -> Iterator[GaugeMetricFamily]:
        cost = self._scheduler.books.cost
        caps = _labelled("rows_cap", "The most rows a forward pass may have", "model", "size")
        knees = _labelled("rows_knee", "Beyond so many rows throughput hardly grows", "model", "size")
        for model in {name_of(model): model for model in self._scheduler.visits.state.resident}.values():
            for width, height in list(cost.seen(model))[:MOST_SIZES]:
                key, labels = BatchKey(model, width, height), [name_of(model), f"{width}x{height}"]
                cap = self._scheduler.cap(key)
                caps.add_metric(labels, cap)
                knees.add_metric(labels, cost.knee(key, cap))
        yield from (caps, knees)

    def _device(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        facts, state = self._scheduler.visits.engine.facts, self._scheduler.visits.state
        info = _labelled("info", "Always 1; what runs, and on what", "version", "device", "dtype")
        info.add_metric([version("darkroom"), facts.name, facts.dtype], 1)
        yield info
        if state.memory_used is not None:
            yield _gauge("memory_used_bytes", "Of the CUDA device; elsewhere of the process", state.memory_used)
        counts = state.counts
        yield _count("memory_splits", "Batches halved for want of memory", counts.splits)
        yield _count("prompt_cache_hits", "Texts whose embedding was there already", counts.prompts_kept)
        yield _count("prompt_cache_misses", "Texts that went through the encoders", counts.prompts_encoded)


def _labelled(name: str, what: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"darkroom_{name}", what, labels=labels)


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"darkroom_{name}", what, value=value)


def _count(name: str, what: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"darkroom_{name}", what, value=value)
