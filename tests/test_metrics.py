"""What GET /metrics tells: every metric of the docs is there, and moves when the thing happens."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.engine import Engine
from pipelines.errors import ImageFailed
from pipelines.request import BatchKey, ImageRequest
from pipelines.state import EngineState
from server.metrics import MOST_SIZES, Metrics
from server.recent import WINDOW_SECONDS, Recent
from storage.errors import DiskFull
from storage.files import MediaFiles
from tests.conftest import Server
from tests.fake_server import FakeServer, GatedEngine, calling, eventually, serving

DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"


class Scrape:
    """The samples of one scrape."""

    def __init__(self, url: str) -> None:
        answer = httpx.get(url + "/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.families = list(text_string_to_metric_families(answer.text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """A sample's value; 0 where there is none, as for Prometheus' `increase`."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == f"darkroom_{name}" and sample.labels | labels == sample.labels
        ]
        assert len(found) <= 1, f"{name} is not one sample: name its labels"
        return float(found[0]) if found else 0.0


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeServer]:
    with serving(tmp_path / "data", queue_limit=4) as running:
        eventually(lambda: httpx.get(running.url + "/ready").status_code == 200)
        yield running


def documented() -> dict[str, tuple[str, set[str]]]:
    """Of each metric in the docs its kind and labels."""
    rows = re.findall(r"^\| `(darkroom_\w+)` \| (\w+) \|([\w, ]*)\|", DOCS.read_text(), re.MULTILINE)
    return {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows}


def test_what_is_exported_is_documented_with_its_kind_and_labels_and_the_reverse(fake: FakeServer) -> None:
    fake.engine.failing_seeds[9] = ImageFailed("planted")
    for model in ("fake", "other", "broken"):  # the third evicts the first
        fake.post(model=model, n=2, seed=8)
    fake.engine.gates["step"].close()
    with calling(fake):
        fake.engine.gates["step"].reached.wait(10)
        families = Scrape(fake.url).families
    ours = [
        family for family in families if family.name.startswith("darkroom_") and not family.name.endswith("_created")
    ]
    exported = {}
    for family in ours:
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert family.samples, f"{name} never moved here"
        exported[name] = (family.type, labels)
    assert exported == documented()


def test_pictures_steps_and_loads_are_counted(fake: FakeServer) -> None:
    before = Scrape(fake.url)
    assert before("model_load_seconds_count", model="fake", source="files") == 1
    assert before("model_loaded", model="fake", place="device") == 1
    assert before("pictures_total", model="fake") == before("step_flops_total", model="fake") == 0
    fake.post(n=2, priority=3)
    after = Scrape(fake.url)
    assert after("pictures_total", model="fake") == 2
    assert after("jobs_total", end="completed") == 1
    assert after("wait_seconds_count", priority="3") == 2
    assert after("step_rows_count", model="fake") == 4
    assert after("step_rows_bucket", model="fake", le="4.0") == 4
    assert after("step_rows_bucket", model="fake", le="3.0") == 0
    assert after("step_flops_total", model="fake") == 4 * 4 * 64 * 64, "steps, rows, and one operation a pixel"
    for name in ("step", "decode"):
        assert after(f"{name}_seconds_count", model="fake", size="64x64") > 0
    assert after("encode_seconds_count", model="fake") > 0
    assert after("rows_cap", model="fake", size="64x64") == 16
    assert 1 <= after("rows_knee", model="fake", size="64x64") <= 16
    assert after("disk_free_bytes") > 0


def test_the_queue_is_counted_while_it_stands(fake: FakeServer) -> None:
    fake.post()
    fake.engine.gates["step"].close()
    with calling(fake, n=2), calling(fake, model="other", priority=-1):
        eventually(lambda: Scrape(fake.url)("queue_images", priority="0", stage="denoising") == 2)
        eventually(lambda: Scrape(fake.url)("queue_images", priority="-1", stage="waiting") == 1)
        assert Scrape(fake.url)("backlog_seconds") > 0
        assert fake.post(n=2).status_code == 503
        assert Scrape(fake.url)("refusals_total") == 1
    fake.engine.open()
    eventually(lambda: Scrape(fake.url)("jobs_total", end="cancelled") == 2)
    assert Scrape(fake.url)("backlog_seconds") == 0
    assert not [sample for sample in Scrape(fake.url).samples if sample.name == "darkroom_queue_images"]


def test_failures_and_ends_are_counted_by_cause(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.engine.failing_seeds[7] = ImageFailed("planted")
    fake.post(seed=7)
    fake.post(seed=7, n=3)
    found = Scrape(fake.url)
    assert found("image_failures_total", cause="ImageFailed") == 2
    assert found("jobs_total", end="generation_failed") == found("jobs_total", end="partly_failed") == 1
    assert found("pictures_total", model="fake") == 2

    def full(*_: object) -> None:
        raise DiskFull

    monkeypatch.setattr(MediaFiles, "save", full)
    fake.post()
    found = Scrape(fake.url)
    assert found("jobs_total", end="disk_full") == 1
    assert found("pictures_total", model="fake") == 2, "a picture that could not be kept is none"


@dataclass
class Parking(GatedEngine):
    """Keeps what it evicts in host memory."""

    known: set[str] = field(default_factory=set)

    @property
    def state(self) -> EngineState:
        self.known |= set(self.resident)
        return EngineState(resident=tuple(self.resident), parked=tuple(self.known - set(self.resident)))


@pytest.mark.parametrize(
    ("engine", "destination", "source"), [(GatedEngine, "none", "files"), (Parking, "host", "host")]
)
def test_a_model_that_makes_room_and_comes_back_is_counted(
    tmp_path: Path, engine: type[GatedEngine], destination: str, source: str
) -> None:
    with serving(tmp_path / "data", engine(resident_limit=1)) as fake:
        fake.post()
        before = Scrape(fake.url)
        fake.post(model="other")
        moved = Scrape(fake.url)
        assert moved("model_loaded", model="fake", place="device") == 0
        assert moved("model_loaded", model="fake", place="host") == (destination == "host")
        fake.post()
        after = Scrape(fake.url)
    assert after("model_unloads_total", model="fake", destination=destination) == 1
    again = after("model_load_seconds_count", model="fake", source=source)
    assert again - before("model_load_seconds_count", model="fake", source=source) == 1


def test_what_the_engine_counts_is_told_after_its_next_work(fake: FakeServer) -> None:
    fake.engine.counts.splits, fake.engine.memory_used = 3, 12345
    fake.post()
    assert Scrape(fake.url)("memory_splits_total") == 3
    assert Scrape(fake.url)("memory_used_bytes") == 12345


def test_a_prompt_is_encoded_once(server: Server) -> None:
    def make() -> None:
        body = {"prompt": "a prompt that no other test has", "steps": 1, "guidance_scale": 1}
        assert httpx.post(server.url + "/v1/images/generations", json=body, timeout=60).status_code == 200

    def counts() -> tuple[float, float]:
        found = Scrape(server.url)
        return found("prompt_cache_misses_total"), found("prompt_cache_hits_total")

    make()  # whatever ran before, the engine's state is of now
    before = counts()
    make()
    assert counts() == (before[0], before[1] + 1)
    body = {"prompt": "and another", "steps": 1, "guidance_scale": 1, "n": 3}
    assert httpx.post(server.url + "/v1/images/generations", json=body, timeout=60).status_code == 200
    assert counts() == (before[0] + 1, before[1] + 3), "one is encoded for all three"
    found = Scrape(server.url)
    assert found("memory_used_bytes") > 1e6
    assert found("step_flops_total", model="tiny-sdxl") > 1e6, "counted when the model was measured"


def test_a_batch_that_is_halved_for_want_of_memory_counts(
    engine: Engine, catalog: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.catalog import Catalog

    assert isinstance(catalog, Catalog)
    entry = catalog.entries["tiny-sdxl"]
    engine.load(entry)
    family, before = engine.family(entry), engine.state.counts
    requests = [
        ImageRequest(entry.name, "a hat", None, 32, 32, 2, 1.0, "Euler", "automatic", seed) for seed in range(4)
    ]
    images = engine.begin(entry, requests, engine.encode(entry, requests))
    real = family.predict

    def short(batch: list[object]) -> object:
        if len(batch) > 1:
            raise RuntimeError("planted: out of memory")
        return real(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(family, "predict", short)
    assert engine.step(entry, images) == [None] * 4  # type: ignore[arg-type]
    assert engine.state.counts.splits == before.splits + 3, "four, and each two"


def test_sizes_share_a_label_once_there_are_many() -> None:
    metrics = Metrics()
    for number in range(1, MOST_SIZES + 30):
        metrics.stepped(BatchKey("m@1", 8 * number, 8), 1, 2, 0.1, 0)
    metrics.stepped(BatchKey("m@2", 8, 8), 1, 2, 0.1, 0)
    lines = metrics.text().decode().splitlines()
    counts = dict(re.findall(r'^darkroom_step_seconds_count\{model="m",size="(\w+)"\} (\S+)$', "\n".join(lines), re.M))
    assert len(counts) == MOST_SIZES + 1
    assert counts["other"] == "29.0"
    assert counts["8x8"] == "2.0", "the same model in another state of its file is the same to who watches"


def test_two_servers_share_no_counts() -> None:
    first, second = Metrics(), Metrics()
    first.refused()
    assert b"darkroom_refusals_total 1.0" in first.text()
    assert b"darkroom_refusals_total 0.0" in second.text()


def test_the_last_minute_forgets_what_is_older() -> None:
    now = 100.0
    recent = Recent(lambda: now)
    assert (recent.mean, recent.per_second) == (None, 0.0)
    recent.add(2)
    now += 10
    recent.add(4)
    assert recent.mean == 3
    assert recent.per_second == pytest.approx(6 / 10), "the server is ten seconds old"
    now += WINDOW_SECONDS - 5
    assert recent.mean == 4
    assert recent.per_second == pytest.approx(4 / WINDOW_SECONDS)
    now += 10
    assert (recent.mean, recent.per_second) == (None, 0.0)
