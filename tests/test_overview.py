"""GET /api/v1/queue and /api/v1/capabilities: what they tell, what they keep to themselves, what they cost."""

import itertools
import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image

from pipelines.catalog import Catalog
from pipelines.errors import CheckpointError
from pipelines.samplers import choose, method_of
from server import overview
from server.gpu import WorkerThread
from server.metrics import Metrics
from server.overview import Overview
from server.scheduling.loop import Scheduler
from tests.conftest import Server
from tests.fake_server import FakeServer, calling, eventually, serving
from tests.fakes import FakeEngine, entry, request

IMAGE = {
    "id",
    "position",
    "stage",
    "model",
    "width",
    "height",
    "step",
    "steps",
    "priority",
    "estimatedTimeRemaining",
    "waited",
}


def look(url: str, path: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/api/v1/{path}", timeout=30)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert set(document) == {"success", "data"} and document["success"] is True
    data: dict[str, Any] = document["data"]
    return data


def images(fake: FakeServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = look(fake.url, "queue")["images"]
    return found


def test_an_idle_server_has_nothing_to_tell(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as fake:
        found = look(fake.url, "queue")
    assert found == {
        "queueLength": 0,
        "processingCount": 0,
        "paused": False,
        "averageWaitTime": None,
        "estimatedProcessingTime": 0,
        "backlogSeconds": 0,
        "retryAfter": 1,
        "images": [],
        "recent": {"seconds": 60, "picturesPerSecond": 0, "rowsPerStep": None},
        "totals": {"pictures": 0, "failures": 0, "refusals": 0},
    }


def test_the_queue_while_a_step_runs(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as fake:
        fake.post(n=2)
        fake.engine.gates["step"].close()
        with calling(fake, n=2, steps=8, prompt="a secret"), calling(fake, model="other", priority=-2, size="64x128"):
            eventually(lambda: len(images(fake)) == 3 and images(fake)[0]["stage"] == "denoising")
            eventually(lambda: None not in [image["estimatedTimeRemaining"] for image in images(fake)])
            found = look(fake.url, "queue")
            text = json.dumps(found)
            short = look(fake.url, "queue?limit=1")
    first, second, third = found["images"]
    assert (found["queueLength"], found["processingCount"]) == (1, 2)
    assert set(first) == IMAGE
    assert first | {"position": None, "stage": "denoising", "model": "fake", "step": 0, "steps": 8} == first
    assert second["stage"] == "denoising"
    expected = {"position": 0, "stage": "waiting", "model": "other", "width": 64, "height": 128, "priority": -2}
    assert third | expected == third
    assert third["estimatedTimeRemaining"] >= first["estimatedTimeRemaining"] > 0
    assert found["estimatedProcessingTime"] >= third["estimatedTimeRemaining"] - 0.1
    assert found["backlogSeconds"] > 0 and found["averageWaitTime"] >= 0 and third["waited"] > 0
    assert found["recent"]["rowsPerStep"] == 4 and found["recent"]["picturesPerSecond"] > 0
    assert found["totals"] == {"pictures": 2, "failures": 0, "refusals": 0}
    assert "secret" not in text and "local" not in text
    assert short["images"] == [short["images"][0]] and short["queueLength"] == 1


def test_while_paused_nobody_knows_when_it_will_be_done(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as fake:
        httpx.post(fake.url + "/api/v1/queue/pause")
        paused = look(fake.url, "queue")
        httpx.post(fake.url + "/api/v1/queue/resume")
        resumed = look(fake.url, "queue")
    assert (paused["paused"], paused["estimatedProcessingTime"]) == (True, None)
    assert (resumed["paused"], resumed["estimatedProcessingTime"]) == (False, 0)


@pytest.mark.parametrize("limit", ["-1", "1001", "x"])
def test_a_limit_out_of_bounds_is_refused(server: Server, limit: str) -> None:
    answer = httpx.get(f"{server.url}/api/v1/queue?limit={limit}")
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "limit")


@pytest.mark.anyio
async def test_forecasts_are_bounded_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, loader = WorkerThread("gpu"), WorkerThread("loader")
    scheduler = Scheduler(FakeEngine(), gpu, loader, max_rows=8, queue_limit=1000)
    looks: list[int] = []
    now = itertools.count(100.0)  # each look at the clock is a second later

    def ends(tickets: list[Any], most_looks: int) -> list[float]:
        looks.append(most_looks)
        return [50.0 for _ in tickets]

    monkeypatch.setattr(scheduler.outlook, "ends", ends)
    monkeypatch.setattr(overview, "monotonic", lambda: next(now))
    onlooker = Overview(scheduler, Metrics())
    scheduler.submit(entry(), request())
    first = onlooker.queue(10)["images"][0]["estimatedTimeRemaining"]
    scheduler.submit(entry(), request())
    second, newcomer = (image["estimatedTimeRemaining"] for image in onlooker.queue(10)["images"])
    assert looks == [overview.FORECAST_LOOKS], "the second look was too early for another forecast"
    assert second < first and newcomer is None
    for _ in range(20):
        onlooker.queue(10)
    assert 2 <= len(looks) <= 4
    assert None not in [image["estimatedTimeRemaining"] for image in onlooker.queue(10)["images"]]
    gpu.close()
    loader.close()


def test_capabilities_are_those_of_the_catalogue(server: Server, catalog: Catalog) -> None:
    body = {"prompt": "a hat", "model": "tiny-sdxl", "steps": 1, "size": "40x32"}
    assert httpx.post(server.url + "/v1/images/generations", json=body, timeout=60).status_code == 200
    found = look(server.url, "capabilities")
    assert found["device"] | {"kind": "cpu", "dtype": "float32"} == found["device"]
    assert found["device"]["memoryBytes"] > found["device"]["memoryUsedBytes"]
    assert "CPU" in found["device"]["name"] and found["device"]["memoryUsedBytes"] > 1e6
    assert found["formats"] == ["png", "jpeg", "webp"]
    assert found["families"] == ["sd3", "sdxl"]
    assert found["limits"] | {"maxRows": 16, "queueLimit": 200, "n": 10} == found["limits"]
    assert [model["name"] for model in found["models"]] == list(catalog.entries)
    for model in found["models"]:
        known = catalog.entries[model["name"]]
        assert model["default"] == (model["name"] == catalog.default)
        assert model["sizes"]["default"] == f"{known.width}x{known.height}"
        assert model["sizes"]["maxPixels"] == known.max_pixels
        assert model["qualities"]["medium"] == known.steps
        for sampler in model["samplers"]:
            assert sampler["maxSteps"] == method_of(sampler["name"], known.prediction).max_steps
            for schedule in sampler["schedules"]:
                choose(known.prediction, sampler["name"], schedule)  # raises what it does not know
    (tiny,) = [model for model in found["models"] if model["name"] == "tiny-sdxl"]
    (shape,) = [shape for shape in tiny["shapes"] if (shape["width"], shape["height"]) == (40, 32)]
    assert tiny["state"] == "resident" and "2" in shape["stepSeconds"]
    assert 1 <= shape["knee"] <= shape["cap"] == 16
    assert str(catalog.entries["tiny-sdxl"].source) not in json.dumps(found), "where it lies is the operator's to know"


def test_a_model_is_loading_then_there_or_broken(tmp_path: Path) -> None:
    def states(fake: FakeServer) -> dict[str, Any]:
        return {model["name"]: model["state"] for model in look(fake.url, "capabilities")["models"]}

    with serving(tmp_path / "data") as fake:
        eventually(lambda: states(fake) == {"fake": "resident", "other": "absent", "broken": "absent"})
        fake.engine.failing["broken"] = CheckpointError("planted")
        fake.post(model="broken")
        assert states(fake)["broken"] == "broken"
        fake.engine.gates["step"].close()
        with calling(fake):
            assert fake.engine.gates["step"].reached.wait(30)
            with calling(fake, model="other"):  # it is placed on the thread that stands at the gate
                eventually(lambda: states(fake)["other"] == "loading")
                found = look(fake.url, "capabilities")["models"][1]["loading"]
        # It must wait for the thread that stands at the gate, which sees to it that there is room to read into.
        assert (found["stage"], found["share"]) == ("checking", 0) and found["seconds"] >= 0


def test_a_parked_model_says_so() -> None:
    state = SimpleNamespace(resident=(), parked=(entry().identity,))
    onlooker = Overview(SimpleNamespace(visits=SimpleNamespace(state=state)), Metrics())  # type: ignore[arg-type]
    assert onlooker._place(entry(), False) == "parked"


def test_a_picture_in_the_making_can_be_looked_at(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as fake:
        fake.post()
        with calling(fake, steps=150):
            fake.engine.step_seconds = 0.02
            eventually(lambda: look(fake.url, "queue")["images"])
            (image,) = look(fake.url, "queue")["images"]
            eventually(lambda: look(fake.url, "queue")["images"][0]["step"] > 1)
            answer = httpx.get(f"{fake.url}/api/v1/queue/{image['id']}/preview")
            assert answer.status_code == 200 and answer.headers["content-type"] == "image/webp"
            assert Image.open(BytesIO(answer.content)).size == (8, 8)
        missing = httpx.get(f"{fake.url}/api/v1/queue/99/preview")
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "not_found"
