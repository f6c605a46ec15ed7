"""A job as OpenTelemetry tells it: one trace of spans, made when it has ended from the times noted on the way.

    image job
      accept                                          its row, durable before anything is computed
      image                                           for each of them
        wait, encode, denoise, decode, keep           its stages, and its files
      record                                          the rows of its pictures, and its end

The one module that imports OpenTelemetry; `tracing.py` does so only where traces are wanted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from time import monotonic_ns, time_ns

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.endings import ImageEnd, JobEnd
from server.scheduling.queue import Stage, Ticket

Attributes = Mapping[str, str | int | float]

STAGES = {
    Stage.WAITING: "wait",
    Stage.ENCODING: "encode",
    Stage.DENOISING: "denoise",
    Stage.DECODING: "decode",
}


class Spans:
    """Makes a trace of each job that has ended. A thread of the SDK's sends them in batches, as OTLP over HTTP.

    Raises:
        ValueError: the OTEL_* variables, of which the SDK reads the rest, contradict each other.
    """

    def __init__(self) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("darkroom", version("darkroom"))

    def job_ended(self, job: JobEnd) -> None:
        """Take a job's trace down. A traceparent that is none begins a new one, as W3C has it."""
        parent = TraceContextTextMapPropagator().extract({"traceparent": job.order.traceparent or ""})
        trace = _Trace(self._tracer, time_ns() - monotonic_ns())
        failure = job.end if job.error else None
        # SERVER, for it answers another process: only so does a backend draw the way from there to here.
        root = trace.span("image job", parent, job.began, job.ended, _of_job(job), failure, SpanKind.SERVER)
        if job.images:
            trace.span("accept", root, job.began, min(image.ticket.submitted for image in job.images))
            for image in job.images:
                trace.image(image, root)
            trace.span("record", root, max(image.settled for image in job.images), job.ended, error=failure)

    def close(self) -> None:
        """Send what is left, however long that takes; nothing is heard any more."""
        self._provider.shutdown()


@dataclass(frozen=True)
class _Trace:
    """Writes down the spans of one trace, parents first.

    `epoch` is when the monotonic clock was 0, in nanoseconds since 1970: one for all of them, so that no span leaves
    its parent when the machine's clock is set.
    """

    tracer: Tracer
    epoch: int

    def span(
        self,
        name: str,
        parent: Context,
        began: float,
        ended: float,
        attributes: Attributes | None = None,
        error: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Context:
        """One span, from and to a time in seconds of the monotonic clock; a parent for others."""
        span = self.tracer.start_span(name, parent, kind, attributes, start_time=self._at(began))
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR, error)
        span.end(self._at(ended))
        return set_span_in_context(span)

    def image(self, image: ImageEnd, job: Context) -> None:
        """An image and its stages, each until the next begins; if it failed, so did the last of them."""
        span = self.span("image", job, image.ticket.submitted, image.settled, _of_image(image), image.error)
        stages = _stages(image.ticket)
        for (name, began), (_, ended) in pairwise(stages):
            self.span(name, span, began, ended)
        name, began = stages[-1]
        self.span(name, span, began, image.settled, error=image.error)

    def _at(self, seconds: float) -> int:
        return self.epoch + round(seconds * 1e9)


def _stages(ticket: Ticket) -> list[tuple[str, float]]:
    """What an image went through, and since when."""
    stages = [(STAGES[stage], began) for stage, began in ticket.stages]
    if not ticket.future.cancelled() and not ticket.future.exception():
        stages.append(("keep", ticket.future.result().finished))
    return stages


def _of_job(job: JobEnd) -> Attributes:
    """What is known of a job but for its prompts, its owner and whatever else is its client's own."""
    first = job.order.requests[0]
    facts: dict[str, str | int | float | None] = {
        "gen_ai.request.model": job.order.entry.name,
        "gen_ai.request.choice.count": len(job.order.requests),
        "gen_ai.output.type": "image",
        "darkroom.job.id": job.id,
        "darkroom.job.priority": job.order.priority,
        "darkroom.job.end": job.end,
        "darkroom.job.images_kept": job.kept,
        "darkroom.model.hash": job.weights,
        "darkroom.image.width": first.width,
        "darkroom.image.height": first.height,
        "darkroom.image.steps": first.steps,
        "darkroom.image.sampler": first.sampler,
        "darkroom.image.schedule": first.schedule,
        "darkroom.image.guidance_scale": first.guidance_scale,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _of_image(image: ImageEnd) -> Attributes:
    return {
        "gen_ai.request.seed": image.ticket.request.seed,
        "darkroom.image.index": image.index,
        "darkroom.image.steps_done": image.ticket.step,
    }


def _resource() -> Resource:
    """Who tells: `darkroom`, unless the environment has another name for it."""
    ours = Resource({"service.name": "darkroom", "service.version": version("darkroom")})
    return Resource.create().merge(ours).merge(OTELResourceDetector().detect())
