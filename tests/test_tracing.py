"""Traces of the jobs: what they tell and never tell, that they are sent, and that no collector costs a picture."""

import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time_ns

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import server.spans
from pipelines.errors import CheckpointError, ImageFailed
from storage.errors import DiskFull
from storage.files import MediaFiles
from storage.jobs import JobStore
from tests.fake_server import GENERATIONS, PATIENCE, Gate, calling, eventually, gate_before, serving

ROOT = Path(__file__).parent.parent
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
STAGES = ["wait", "encode", "denoise", "decode", "keep"]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where the spans of the servers of a test end up, instead of at a collector."""
    memory = InMemorySpanExporter()
    monkeypatch.setenv(ENDPOINT, "http://nowhere.invalid")
    monkeypatch.setattr(server.spans, "OTLPSpanExporter", lambda: memory)
    return memory


@dataclass
class Trace:
    """The spans of one job, by parent."""

    spans: list[ReadableSpan]

    @property
    def root(self) -> ReadableSpan:
        (root,) = [span for span in self.spans if span.name == "image job"]
        return root

    @property
    def images(self) -> list[ReadableSpan]:
        return [span for span in self.of(self.root) if span.name == "image"]

    def of(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """A span's children, in the order of their beginnings."""
        here = parent.get_span_context()
        found = [span for span in self.spans if span.parent and here and span.parent.span_id == here.span_id]
        return sorted(found, key=began)

    def stages(self, image: ReadableSpan) -> list[str]:
        return [span.name for span in self.of(image)]


def began(span: ReadableSpan) -> int:
    assert span.start_time
    return span.start_time


def ended(span: ReadableSpan) -> int:
    assert span.end_time
    return span.end_time


def error(span: ReadableSpan) -> object:
    """A span's error, once its three tellings are seen to agree; None where it has none."""
    told = (span.attributes or {}).get("error.type")
    assert (span.status.status_code is StatusCode.ERROR) == (told is not None)
    assert span.status.description == told
    return told


def one_trace(spans: InMemorySpanExporter) -> Trace:
    """The only trace there is, once the server has stopped."""
    found = list(spans.get_finished_spans())
    assert len({span.context.trace_id for span in found if span.context}) == 1
    return Trace(found)


def test_a_job_with_two_images_is_one_trace_and_every_stage_lies_in_its_parent(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    with serving(tmp_path) as fake:
        fake.engine.step_seconds = 0.005
        answer = fake.post(n=2, seed=5, steps=3, priority=2, guidance_scale=4)
        job_id = fake.rows("SELECT id FROM jobs")[0][0]
    assert answer.status_code == 200
    trace = one_trace(spans)
    assert [span.name for span in trace.of(trace.root)] == ["accept", "image", "image", "record"]
    assert [trace.stages(image) for image in trace.images] == [STAGES, STAGES]
    for parent in [trace.root, *trace.images]:
        children = trace.of(parent)
        assert all(began(parent) <= began(child) <= ended(child) <= ended(parent) for child in children)
    for image in trace.images:
        stages = trace.of(image)
        assert [ended(stage) for stage in stages] == [*map(began, stages[1:]), ended(image)]
        denoising = stages[2]
        assert ended(denoising) - began(denoising) >= 3 * 0.005 * 1e9, "real times: three steps of 5 ms"
    accept, *_, record = trace.of(trace.root)
    assert ended(accept) == min(map(began, trace.images))
    assert began(record) == max(map(ended, trace.images))
    assert [error(span) for span in trace.spans] == [None] * 15
    assert trace.root.kind is SpanKind.SERVER and trace.root.parent is None
    assert dict(trace.root.attributes or {}) == {
        "gen_ai.request.model": "fake",
        "gen_ai.request.choice.count": 2,
        "gen_ai.output.type": "image",
        "darkroom.job.id": job_id,
        "darkroom.job.priority": 2,
        "darkroom.job.end": "completed",
        "darkroom.job.images_kept": 2,
        "darkroom.image.width": 64,
        "darkroom.image.height": 64,
        "darkroom.image.steps": 3,
        "darkroom.image.sampler": "Euler",
        "darkroom.image.schedule": "automatic",
        "darkroom.image.guidance_scale": 4.0,
    }
    told = sorted((image.attributes or {}).items() for image in trace.images)
    assert [dict(facts) for facts in told] == [
        {"gen_ai.request.seed": 5 + index, "darkroom.image.index": index, "darkroom.image.steps_done": 3}
        for index in range(2)
    ]


def test_the_times_are_those_of_the_wall_clock(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    before = time_ns()
    with serving(tmp_path) as fake:
        fake.post()
    root = one_trace(spans).root
    assert before - 1e6 <= began(root) <= ended(root) <= time_ns() + 1e6, "but for the clocks' own grain"


def test_the_weights_hash_is_told_once_it_is_known(
    tmp_path: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.weights.model_hash", lambda *_: "f" * 64)
    with serving(tmp_path) as fake:
        fake.post()
    assert (one_trace(spans).root.attributes or {})["darkroom.model.hash"] == "f" * 64


def test_a_traceparent_is_the_parent(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with serving(tmp_path) as fake:
        httpx.post(fake.url + GENERATIONS, json={"prompt": "a hat"}, headers=headers, timeout=PATIENCE)
    trace = one_trace(spans)
    assert trace.root.context and trace.root.parent
    assert trace.root.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert trace.root.parent.span_id == 0xB7AD6B7169203331
    assert trace.root.parent.is_remote


def test_who_sampled_the_request_out_is_heeded(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
    with serving(tmp_path) as fake:
        httpx.post(fake.url + GENERATIONS, json={"prompt": "a hat"}, headers=headers, timeout=PATIENCE)
    assert not spans.get_finished_spans()


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "?",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "0" * 5000,
    ],
)
def test_a_broken_traceparent_is_none(tmp_path: Path, spans: InMemorySpanExporter, broken: str) -> None:
    with serving(tmp_path) as fake:
        body = {"prompt": "a hat"}
        answer = httpx.post(fake.url + GENERATIONS, json=body, headers={"traceparent": broken}, timeout=PATIENCE)
    assert answer.status_code == 200
    root = one_trace(spans).root
    assert root.parent is None
    assert root.context and root.context.trace_id != 0x0AF7651916CD43DD8448EB211C80319C


@pytest.mark.parametrize(("verb", "stage"), [("encode", "encode"), ("step", "denoise"), ("finish", "decode")])
def test_a_failed_job_says_why_and_where(tmp_path: Path, spans: InMemorySpanExporter, verb: str, stage: str) -> None:
    with serving(tmp_path) as fake:
        fake.engine.failing[f"{verb} a hat"] = ImageFailed("planted")
        assert fake.post().status_code == 500
    trace = one_trace(spans)
    (image,) = trace.images
    assert trace.stages(image) == STAGES[: STAGES.index(stage) + 1]
    *before, last = trace.of(image)
    assert [error(span) for span in (trace.root, image, last)] == ["generation_failed"] * 3
    assert [error(span) for span in before] == [None] * len(before)
    assert (trace.root.attributes or {})["darkroom.job.end"] == "generation_failed"
    assert (trace.root.attributes or {})["darkroom.job.images_kept"] == 0


def test_a_model_that_cannot_be_loaded_fails_the_wait(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    with serving(tmp_path) as fake:
        fake.engine.failing["broken"] = CheckpointError("planted")
        assert fake.post(model="broken").status_code == 503
    trace = one_trace(spans)
    (image,) = trace.images
    assert trace.stages(image) == ["wait"]
    assert error(trace.root) == error(image) == "model_unavailable"


def test_one_of_two_that_fails_leaves_the_job_whole(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    with serving(tmp_path) as fake:
        fake.engine.failing_seeds[6] = ImageFailed("planted")
        assert fake.post(n=2, seed=5).status_code == 200
    trace = one_trace(spans)
    assert error(trace.root) is None
    assert (trace.root.attributes or {})["darkroom.job.end"] == "partly_failed"
    errors = {(image.attributes or {})["darkroom.image.index"]: error(image) for image in trace.images}
    assert errors == {0: None, 1: "generation_failed"}


def test_files_that_cannot_be_kept_fail_the_keeping(
    tmp_path: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DiskFull

    monkeypatch.setattr(MediaFiles, "save", full)
    with serving(tmp_path) as fake:
        assert fake.post().status_code == 503
    trace = one_trace(spans)
    assert trace.stages(trace.images[0]) == STAGES
    assert error(trace.of(trace.images[0])[-1]) == error(trace.root) == "disk_full"


def test_a_cancelled_job_ends_where_it_was(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    with serving(tmp_path) as fake:
        fake.engine.gates["step"].close()
        with calling(fake):
            assert fake.engine.gates["step"].reached.wait(PATIENCE)
        eventually(lambda: fake.statuses == ["cancelled"])
    trace = one_trace(spans)
    assert trace.stages(trace.images[0]) == ["wait", "encode", "denoise"]
    assert [error(span) for span in (trace.root, trace.images[0], trace.of(trace.images[0])[-1])] == ["cancelled"] * 3


def test_a_job_whose_client_went_before_it_was_in_line_is_cancelled(
    tmp_path: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = gate_before(monkeypatch, JobStore, "insert")
    with serving(tmp_path) as fake:
        with calling(fake):
            assert gate.reached.wait(PATIENCE)
        assert not fake.queue
        gate.open()
        eventually(lambda: fake.statuses == ["cancelled"])
    trace = one_trace(spans)
    assert error(trace.root) == "cancelled"
    assert "denoise" not in [span.name for span in trace.spans]
    assert "Exception" not in caplog.text


def test_no_span_holds_what_its_client_wrote(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    secrets = {name: f"secret-{name}" for name in ("prompt", "negative_prompt", "user", "session_id")}
    with serving(tmp_path) as fake:
        for verb in ("nothing", "step"):
            fake.engine.failing = {f"{verb} {secrets['prompt']}": ImageFailed(f"planted: {secrets['prompt']}")}
            fake.post(**secrets)
        fake.engine.failing, fake.engine.failing_seeds[1] = {}, RuntimeError(secrets["prompt"])
        fake.post(**secrets, seed=1)
        assert fake.statuses == ["completed", "failed", "failed"]
    told = [span.to_json() for span in spans.get_finished_spans()]
    assert len(told) == 9 + 7 + 8
    assert not [span for span in told if "secret" in span]


def test_what_is_told_is_documented_and_the_reverse(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    with serving(tmp_path) as fake, pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.weights.model_hash", lambda *_: "f" * 64)
        fake.engine.failing_seeds[1] = ImageFailed("planted")
        for seed in range(2):
            fake.post(seed=seed)
    found = spans.get_finished_spans()
    section = (ROOT / "docs" / "metrics.md").read_text().partition("## Traces")[2]
    rows = re.findall(r"^\| `([\w. ]+)` \|", section, re.MULTILINE)
    assert sorted(rows) == sorted(
        {span.name for span in found} | {name for span in found for name in span.attributes or {}}
    )


@pytest.mark.parametrize(
    "off",
    [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_TRACES_SAMPLER": "always_off"}],
    ids=str,
)
def test_the_usual_variables_switch_it_off(
    tmp_path: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, off: dict[str, str]
) -> None:
    for name, value in off.items():
        monkeypatch.setenv(name, value)
    with serving(tmp_path) as fake:
        assert fake.post().status_code == 200
    assert not spans.get_finished_spans()


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP collector: it keeps what it is sent, or answers as it is told, once its gate lets it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.gate = Gate()
        self.status = 200
        self.paths: list[str] = []
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def names(self) -> list[str]:
        return [
            span.name
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def resource(self) -> dict[str, str]:
        attributes = self.requests[0].resource_spans[0].resource.attributes
        return {attribute.key: attribute.value.string_value for attribute in attributes}


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.gate.enter()
        self.server.paths.append(self.path)
        assert self.headers["Content-Type"] == "application/x-protobuf"
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield running
        finally:
            running.gate.open()
            running.shutdown()
            thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("variable", "path"), [(ENDPOINT, "/v1/traces"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/mine")]
)
def test_a_collector_receives_the_spans_while_the_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collector: Collector, variable: str, path: str
) -> None:
    monkeypatch.setenv(variable, collector.url + ("" if variable == ENDPOINT else path))
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with serving(tmp_path) as fake:
        assert fake.post(n=2).status_code == 200
        eventually(lambda: len(collector.names) == 15)
    assert set(collector.paths) == {path}
    assert sorted(collector.names) == sorted(["image job", "accept", "record", *2 * ["image", *STAGES]])
    assert collector.resource["service.name"] == "darkroom"
    assert collector.resource["telemetry.sdk.language"] == "python"


@pytest.mark.parametrize(
    "variable", [("OTEL_SERVICE_NAME", "mine"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")], ids=str
)
def test_a_stop_sends_what_is_left_under_the_name_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collector: Collector, variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(ENDPOINT, collector.url)
    monkeypatch.setenv(*variable)
    with serving(tmp_path) as fake:
        assert fake.post().status_code == 200
    assert len(collector.names) == 9
    assert collector.resource["service.name"] == "mine"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of tracing."""
    return [record.getMessage() for record in caplog.records if record.name == "server.tracing"]


def test_a_collector_that_is_down_costs_no_picture_and_two_lines_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as nobody:  # bound, and not listening: a connection is refused
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.001")
        heard, passed_on = _Counting(), _Counting()
        logging.getLogger("opentelemetry").addHandler(heard)
        logging.getLogger().addHandler(passed_on)  # not caplog, which also listens at loggers that do not pass on
        try:
            with serving(tmp_path) as fake:
                while heard.count < 5:
                    assert fake.post().status_code == 200
            fake.check_consistent()
        finally:
            logging.getLogger("opentelemetry").removeHandler(heard)
            logging.getLogger().removeHandler(passed_on)
    assert len(lines(caplog)) == len(set(lines(caplog))) <= 2
    assert "Failed to export spans batch" in lines(caplog)[0]
    assert passed_on.count == 0


class _Counting(logging.Handler):
    """How often OpenTelemetry had something to say."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.name.startswith("opentelemetry")


def test_a_collector_that_never_answers_holds_up_neither_job_nor_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(2 * PATIENCE))
    collector.gate.close()
    with serving(tmp_path) as fake:
        assert fake.post().status_code == 200
        assert collector.gate.reached.wait(PATIENCE)
        assert fake.post().status_code == 200
    assert not collector.paths, "the server is gone, and the gate still closed"
    assert lines(caplog) == ["the last traces are lost: the collector did not take them within 1 s"]
    collector.gate.open()
    eventually(lambda: "traces" not in [thread.name for thread in threading.enumerate()])


def test_a_job_whose_trace_cannot_be_taken_down_is_whole(
    tmp_path: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(server.spans.Spans, "job_ended", fail)
    with serving(tmp_path) as fake:
        assert fake.post().status_code == 200
        assert 'darkroom_jobs_total{end="completed"} 1.0' in httpx.get(fake.url + "/metrics").text
        assert fake.post().status_code == 200
    assert "planted" in caplog.text


def test_variables_that_contradict_each_other_are_named_and_the_server_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://nowhere.invalid")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with serving(tmp_path) as fake:
        assert fake.post().status_code == 200
    assert lines(caplog) == [
        "nothing is traced: the OTEL_* variables cannot be used: max_queue_size must be a positive integer."
    ]


def test_without_the_extra_one_line_names_the_remedy_and_the_server_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://nowhere.invalid")
    monkeypatch.delitem(sys.modules, "server.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk.")]:
        monkeypatch.delitem(sys.modules, name)
    with serving(tmp_path) as fake:
        assert fake.post().status_code == 200
    (line,) = lines(caplog)
    assert line.startswith(f"nothing is traced: {ENDPOINT} is set, but what sends traces is not here")
    assert "pip install 'darkroom[otel]'" in line


STARTING = """
import asyncio, os, sys
from pathlib import Path
from pipelines.catalog import Catalog
from server.app import create_app
from server.settings import Settings
from tests.fakes import FakeEngine, entry

async def start():
    app = create_app(Settings(data=Path(os.environ["DATA"])), Catalog({"fake": entry()}, "fake", Path("m")), FakeEngine)
    async with app.lifespan():
        print({name.partition(".")[2].partition(".")[0] for name in sys.modules if name.startswith("opentelemetry.")})

asyncio.run(start())
"""


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9"])
def test_what_makes_and_sends_spans_is_imported_only_where_a_collector_is_named(tmp_path: Path, endpoint: str) -> None:
    """Litestar looks for the API's package by itself wherever it is installed; that is small and does nothing."""
    environment = os.environ | {ENDPOINT: endpoint, "DATA": str(tmp_path)}
    command = [sys.executable, "-c", STARTING]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert ("'sdk'" in done.stdout) == ("'exporter'" in done.stdout) == bool(endpoint), done.stdout
