"""models.toml edited under a running server: what is offered changes, what is under way does not."""

import io
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageChops

import server.catalogue
from pipelines.catalog import Catalog, Look, ModelEntry
from pipelines.families import family_facts
from pipelines.hashing import CACHE_NAME, FileHashes, model_hash
from pipelines.models_toml import DEMO_CATALOG, load_catalog, look
from server.catalogue import Catalogue
from storage.encoding import read_metadata
from tests import tiny
from tests.conftest import Server, serving_models
from tests.fake_server import GENERATIONS, PATIENCE, FakeServer, Gate, GatedEngine, eventually, serving

TABLE = '[models.{name}]\nfamily = "sdxl"\nsource = "{source}"\nsize = "32x32"\n{more}\n'


def table(name: str = "a", source: str = "./a", **more: object) -> str:
    return TABLE.format(name=name, source=source, more="\n".join(f"{k} = {v}" for k, v in more.items()))


def read(file: Path) -> Catalog:
    return load_catalog(file, family_facts())


def save(file: Path, text: str) -> None:
    """As editors do: a new file in the old one's place."""
    file.with_suffix(".new").write_text(text)
    os.replace(file.with_suffix(".new"), file)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.catalogue, "LOOK_SECONDS", 0.05)


@pytest.fixture(scope="module")
def checkpoint_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny checkpoints of one architecture, `a` and `b`."""
    folder = tmp_path_factory.mktemp("pair")
    tiny.build_sdxl(folder / "a", seed=1)
    tiny.build_sdxl(folder / "b", seed=2)
    return folder


@pytest.fixture
def file(checkpoint_pair: Path, tmp_path: Path) -> Path:
    """A models.toml that names `a`, beside both checkpoints."""
    for name in ("a", "b"):
        shutil.copytree(checkpoint_pair / name, tmp_path / name)
    save(tmp_path / "models.toml", table(steps=2))
    return tmp_path / "models.toml"


@contextmanager
def real(file: Path) -> Iterator[Server]:
    """The real engine, once its default model is loaded."""
    with serving_models(read(file), file.parent / "data") as running:
        eventually(lambda: ready(running).status_code == 200)
        yield running


@contextmanager
def fake(file: Path, **settings: Any) -> Iterator[FakeServer]:
    with serving(file.parent / "data", catalog=read(file), **settings) as running:
        eventually(lambda: ready(running).status_code == 200)
        yield running


def ready(running: Server | FakeServer) -> httpx.Response:
    return httpx.get(running.url + "/ready")


@dataclass
class GatedReader(GatedEngine):
    """Each read waits at a gate of its own."""

    reads: list[Gate] = field(default_factory=lambda: [Gate(), Gate()])
    begun: Iterator[int] = field(default_factory=count)

    def read(self, entry: ModelEntry, progress: Any) -> str:
        self.reads[next(self.begun)].enter()
        return super().read(entry, progress)


def test_a_default_edited_while_it_loads_is_ready_once_the_new_one_is_there(file: Path) -> None:
    engine = GatedReader()
    former, new = engine.reads
    former.close()
    new.close()
    with serving(file.parent / "data", engine, catalog=read(file)) as running:
        try:
            assert former.reached.wait(PATIENCE)
            save(file, table(source="./b"))
            eventually(lambda: running.app.state.services.catalog.resolve(None).source.endswith("b"))
            former.open()
            assert new.reached.wait(PATIENCE)
            assert ready(running).status_code == 503
            new.open()
            eventually(lambda: ready(running).status_code == 200)
        finally:
            former.open()
            new.open()


def post(running: Server | FakeServer, **fields: Any) -> httpx.Response:
    return httpx.post(running.url + GENERATIONS, json={"prompt": "a hat"} | fields, timeout=60)


def models(running: Server | FakeServer) -> dict[str, Any]:
    return {model["id"]: model for model in httpx.get(running.url + "/v1/models").json()["data"]}


def made(running: Server, answer: httpx.Response) -> tuple[Image.Image, str]:
    """A picture, and the hash of the weights that it says made it, told alike in all places."""
    assert answer.status_code == 200, answer.text
    told = answer.json()["modelHash"]
    data = httpx.get(running.url + answer.json()["imageUrl"]).content
    story = read_metadata(data)
    assert f", Model hash: {told[:10]}, Model: " in story["parameters"]
    assert json.loads(story["darkroom"])["model_hash"] == told
    return Image.open(io.BytesIO(data)).convert("RGB"), told


def hash_of(file: Path, name: str = "a") -> str:
    return model_hash(read(file).resolve(name), FileHashes(None).of)


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest of any pixel, of 255."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def test_an_edit_changes_the_defaults_and_loads_nothing(file: Path) -> None:
    with fake(file) as running:
        assert post(running).json()["parameters"]["steps"] == 2
        save(file, table(steps=3, guidance_scale=1.5, aliases='["b"]'))
        eventually(lambda: models(running)["a"]["defaults"]["steps"] == 3)
        answer = post(running, model="b").json()["parameters"]
        assert (answer["steps"], answer["cfgScale"]) == (3, 1.5)
        assert running.engine.loads == ["a"]


def test_a_new_model_appears_and_makes_a_picture(file: Path) -> None:
    with real(file) as running:
        assert post(running, model="b").status_code == 404
        save(file, table(steps=2) + table("b", "./b", steps=2))
        eventually(lambda: "b" in models(running))
        _, told = made(running, post(running, model="b"))
        assert told == hash_of(file, "b") == models(running)["b"]["model_hash"]
        assert models(running)["a"]["model_hash"] == hash_of(file, "a") != told


def test_a_removed_model_ends_what_it_has_begun_and_leaves_the_device(file: Path) -> None:
    save(file, table() + table("b", "./b"))
    with fake(file) as running, ThreadPoolExecutor(1) as pool:
        running.engine.gates["step"].close()
        under_way = pool.submit(post, running, model="b")
        assert running.engine.gates["step"].reached.wait(PATIENCE)
        save(file, table())
        eventually(lambda: list(models(running)) == ["a"])
        refused = post(running, model="b")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert sorted(ready(running).json()["models"]) == ["a", "b"]
        running.engine.open()
        assert under_way.result().status_code == 200
        eventually(lambda: ready(running).json()["models"] == ["a"])


def test_what_waits_is_made_as_it_was_asked_for(file: Path) -> None:
    with fake(file) as running, ThreadPoolExecutor(4) as pool:
        running.engine.gates["encode"].close()
        waiting = [pool.submit(post, running, seed=seed) for seed in range(4)]
        eventually(lambda: running.queue == 4)
        save(file, table(source="./b", steps=7))
        eventually(lambda: models(running)["a"]["defaults"]["steps"] == 7)
        running.engine.open()
        answers = [call.result() for call in waiting]
        assert [answer.json()["parameters"]["steps"] for answer in answers] == [2] * 4
        assert {answer.json()["modelHash"] for answer in answers} == {hash_of_source(file, "./a")}


def hash_of_source(file: Path, source: str) -> str:
    save(file, table(source=source))
    return hash_of(file)


def test_another_default_is_loaded_before_anybody_asks_for_it(file: Path) -> None:
    with fake(file) as running:
        save(file, 'default = "b"\n' + table() + table("b", "./b"))
        eventually(lambda: running.engine.loads == ["a", "b"])
        assert post(running).json()["model"] == "b"
        assert ready(running).status_code == 200


def test_a_default_that_cannot_be_loaded_is_told_until_an_edit_mends_it(file: Path) -> None:
    save(file, table(source="./nowhere"))
    with serving_models(read(file), file.parent / "data") as running:
        eventually(lambda: ready(running).json()["broken_models"] == ["a"])
        assert ready(running).status_code == 503
        assert ready(running).json()["catalogue"] is None
        save(file, table(source="./nowhere", steps=3) + table("b", "./b"))
        eventually(lambda: "b" in models(running))
        save(file, table(source="./b", steps=2))
        eventually(lambda: ready(running).status_code == 200)
        assert ready(running).json()["broken_models"] == []


@pytest.mark.parametrize(
    "edit",
    [
        table(source="./nowhere"),
        table(source="/srv/nowhere"),
        table() + table("c", "./nowhere"),
        table(vae='"./nowhere"'),
        table(source="./half"),
    ],
)
def test_an_edit_that_points_to_no_checkpoint_changes_nothing(
    file: Path, edit: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(file.parent / "b", file.parent / "half")
    (file.parent / "half" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with fake(file) as running:
        save(file, edit + table("d", "./b"))
        eventually(lambda: ready(running).json()["catalogue"])
        answer = ready(running)
        name = "c" if "models.c" in edit else "a"
        assert answer.json()["catalogue"]["error"].startswith(f"models.{name}: its checkpoint cannot be used;")
        assert (answer.status_code, answer.json()["broken_models"], list(models(running))) == (200, [], ["a"])
        assert "nowhere" not in answer.text and "half" not in answer.text
        assert "nowhere" in caplog.text or "half" in caplog.text
        save(file, table(source="./b"))
        eventually(lambda: ready(running).json()["catalogue"] is None)
        eventually(lambda: running.engine.loads == ["a", "a"])


def test_files_that_vanish_without_an_edit_stop_no_edit(file: Path) -> None:
    with fake(file) as running:
        shutil.rmtree(file.parent / "a")
        save(file, table(steps=3) + table("b", "./b"))
        eventually(lambda: "b" in models(running))
        assert models(running)["a"]["defaults"]["steps"] == 3


def test_a_deleted_file_is_the_demo_and_a_new_one_is_read(file: Path) -> None:
    with fake(file) as running:
        file.unlink()
        eventually(lambda: list(models(running)) == list(read(DEMO_CATALOG).entries))
        save(file, table("c", "./b"))
        eventually(lambda: list(models(running)) == ["c"])


BROKEN = table(stepz=3)
MESSAGE = "models.a: unknown key 'stepz'; did you mean 'steps'?"


def test_a_broken_edit_keeps_the_last_good_catalogue(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    with real(file) as running, busy(running) as answers:
        save(file, BROKEN)
        eventually(lambda: ready(running).json()["catalogue"])
        answer = ready(running)
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")
        fault = answer.json()["catalogue"]
        assert fault["error"].startswith(MESSAGE)
        assert began <= datetime.fromisoformat(fault["since"]) <= datetime.now(UTC)
        assert models(running)["a"]["defaults"]["steps"] == 2
        made_then = len(answers)
        eventually(lambda: len(answers) > made_then)
        save(file, table(steps=3))
        eventually(lambda: ready(running).json()["catalogue"] is None)
        eventually(lambda: answers[-1].json()["parameters"]["steps"] == 3)
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["parameters"]["steps"] for answer in answers} == {2, 3}
    told = [record for record in caplog.records if "cannot be used" in record.getMessage()]
    assert len(told) == 1 and str(file) in told[0].getMessage()


@contextmanager
def busy(running: Server) -> Iterator[list[httpx.Response]]:
    """Three clients who ask for one picture after the other."""
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(post(running))

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(ask) for _ in range(3)]
        try:
            eventually(lambda: len(answers) >= 3)
            yield answers
        finally:
            stop.set()
    for call in calls:
        call.result()


def test_another_error_is_another_fault_and_none_tells_a_path(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with fake(file) as running:
        for text, told in {
            "[models.a\n": "Expected ']'",
            table(source="a/b/c"): "models.a.source: there is no 'a/b/c' in its folder,",
            table(source="x" * 300): "models.a.source: ",
        }.items():
            save(file, text)
            eventually(lambda told=told: told in str(ready(running).json()["catalogue"]))  # type: ignore[misc]
            assert str(file.parent) not in ready(running).text
    assert sum("cannot be used" in record.getMessage() for record in caplog.records) == 3


def test_fifty_requests_while_the_weights_are_exchanged(file: Path) -> None:
    hashes = [hash_of_source(file, "./b"), hash_of_source(file, "./a")]
    save(file, table(steps=3))
    with real(file) as running:
        alone = {}
        started = threading.Semaphore(0)

        def one(number: int) -> tuple[Image.Image, str]:
            started.release()
            return made(running, post(running, seed=7, guidance_scale=1 + number % 2))

        with ThreadPoolExecutor(10) as pool:
            calls = [pool.submit(one, number) for number in range(30)]
            for _ in range(12):
                assert started.acquire(timeout=PATIENCE)
            save(file, table(source="./b", steps=3))
            eventually(lambda: models(running)["a"]["model_hash"] != hashes[1])
            calls += [pool.submit(one, number) for number in range(20)]
            pictures = [call.result() for call in calls]
        for guidance in (1, 2):
            picture, told = made(running, post(running, seed=7, guidance_scale=guidance))
            alone[told, guidance] = picture
        save(file, table(source="./a", steps=3))
        eventually(lambda: models(running)["a"]["model_hash"] == hashes[1])
        for guidance in (1, 2):
            picture, told = made(running, post(running, seed=7, guidance_scale=guidance))
            alone[told, guidance] = picture
    assert {told for told, _ in alone} == set(hashes)
    assert hashes[1] in {told for _, told in pictures[:30]}, "some were made before the edit"
    assert {told for _, told in pictures[30:]} == {hashes[0]}
    for number, (picture, told) in enumerate(pictures):
        guidance = 1 + (number if number < 30 else number - 30) % 2
        other = hashes[1 - hashes.index(told)]
        assert difference(picture, alone[told, guidance]) <= 2, "its pixels are those of the weights it names"
        assert difference(picture, alone[other, guidance]) > 20


def test_a_checkpoint_that_was_overwritten_counts_once_models_toml_is_saved(file: Path) -> None:
    with real(file) as running:
        first, told = made(running, post(running, seed=7))
        assert told == hash_of(file)
        shutil.copytree(file.parent / "b", file.parent / "a", dirs_exist_ok=True)
        again, same = made(running, post(running, seed=7))
        assert (difference(first, again), same) == (0, told), "what is loaded is not touched"
        save(file, file.read_text())
        eventually(lambda: models(running)["a"]["model_hash"] not in (None, told))
        other, new = made(running, post(running, seed=7))
        assert new == hash_of(file) == hash_of_source(file, "./b") != told
        assert difference(first, other) > 20


def test_a_picture_whose_weights_cannot_be_hashed_is_kept(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with fake(file) as running:
        save(file, table() + table("b", "./b"))
        eventually(lambda: "b" in models(running))
        shutil.rmtree(file.parent / "b")  # before anybody wants it, which is when it would be hashed
        for _ in range(2):
            answer = post(running, model="b")
            assert (answer.status_code, answer.json()["modelHash"]) == (200, None)
        data = httpx.get(running.url + answer.json()["imageUrl"]).content
    assert "Model hash" not in read_metadata(data)["parameters"]
    assert "Model: b" in read_metadata(data)["parameters"]
    assert caplog.text.count("pictures of model b carry no hash of its weights") == 1


def test_hashes_outlive_the_server(file: Path) -> None:
    with real(file) as running:
        _, told = made(running, post(running))
        history = httpx.get(running.url + "/api/images/history").json()["images"]
        assert [image["modelHash"] for image in history] == [told]
    assert len(json.loads((running.data / CACHE_NAME).read_text())) == 4
    save(file, table("z", "./b", steps=2) + table(steps=2))
    with real(file) as running:
        eventually(lambda: models(running)["a"]["model_hash"] == told)


@pytest.mark.anyio
async def test_a_half_written_file_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue(read(file))
    written = iter(["", "[models.a]\nfam", BROKEN, table(steps=9)])
    reads: list[Path] = []
    follow_writer(monkeypatch, file, written, reads)
    async for former in catalogue.changes():
        assert former.resolve(None).steps == 2
        break
    assert catalogue.present.resolve(None).steps == 9
    assert (len(reads), catalogue.fault) == (1, None)


@pytest.mark.anyio
async def test_the_same_error_saved_again_is_the_same_fault(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalogue = Catalogue(read(file))
    faults = []
    for text in (BROKEN, BROKEN + "# saved again"):
        save(file, text)
        assert await catalogue._read(file, look(file))
        faults.append(catalogue.fault)
    assert faults[0] is faults[1] is not None
    assert caplog.text.count("cannot be used") == 1
    assert not await catalogue._read(file, None), "it is not as it was seen"


@pytest.mark.anyio
async def test_a_file_that_changes_while_it_is_read_is_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue(read(file))
    original = server.catalogue.load_catalog

    def slow(*arguments: Any) -> Catalog:
        catalog = original(*arguments)
        if catalog.resolve(None).steps == 3:
            save(file, table(steps=4))
        return catalog

    monkeypatch.setattr(server.catalogue, "load_catalog", slow)
    save(file, table(steps=3))
    async for former in catalogue.changes():
        assert (former.resolve(None).steps, catalogue.present.resolve(None).steps) == (2, 4)
        break


def follow_writer(monkeypatch: pytest.MonkeyPatch, file: Path, written: Iterator[str], reads: list[Path]) -> None:
    """Have somebody write to the file before each look at it, and note who reads it.

    Another server of this session looks at a file of its own with the same functions.
    """
    original: Callable[..., Catalog] = server.catalogue.load_catalog

    def looked(path: Path) -> Look:
        if path == file and (text := next(written, None)) is not None:
            path.write_text(text)
        return look(path)

    def loaded(path: Path, *arguments: Any) -> Catalog:
        reads.extend([path] if path == file else [])
        return original(path, *arguments)

    monkeypatch.setattr(server.catalogue, "look", looked)
    monkeypatch.setattr(server.catalogue, "load_catalog", loaded)


@pytest.mark.anyio
async def test_an_edit_between_the_reading_and_the_first_look_is_noticed(file: Path) -> None:
    catalogue = Catalogue(read(file))
    save(file, table(steps=5))
    async for _ in catalogue.changes():
        break
    assert catalogue.present.resolve(None).steps == 5


@pytest.mark.anyio
async def test_an_unforeseen_error_does_not_end_the_following(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = Catalogue(read(file))
    original = server.catalogue.load_catalog
    failures = iter([RuntimeError("a bug")])

    def once(*arguments: Any) -> Catalog:
        for failure in failures:
            save(file, table(steps=5))
            raise failure
        return original(*arguments)

    monkeypatch.setattr(server.catalogue, "load_catalog", once)
    save(file, table(steps=4))
    async for _ in catalogue.changes():
        break
    assert catalogue.present.resolve(None).steps == 5


@pytest.mark.anyio
async def test_a_catalogue_that_was_not_read_from_a_file_stays(file: Path) -> None:
    catalog = read(file)
    made_up = Catalogue(Catalog(catalog.entries, catalog.default, catalog.path))
    assert [former async for former in made_up.changes()] == []


@pytest.mark.anyio
async def test_what_is_offered_again_is_not_retired(file: Path) -> None:
    catalogue = Catalogue(read(file))
    first = catalogue.present.resolve(None).identity
    save(file, table(source="./b"))
    async for _ in catalogue.changes():
        if catalogue.present.resolve(None).identity != first:
            assert catalogue.retired == {first}
            save(file, table())
        else:
            assert len(catalogue.retired) == 1 and first not in catalogue.retired
            break


def test_an_identity_follows_the_files_and_not_the_defaults(file: Path) -> None:
    def identity(**more: object) -> str:
        save(file, table(**more))  # type: ignore[arg-type]
        return read(file).resolve(None).identity

    first = identity()
    assert identity(steps=9, guidance_scale=2, price=3.0, aliases='["x"]', max_side=64, license='"MIT"') == first
    unet = file.parent / "a" / "unet"
    seen = {first}
    for changed in (
        lambda: os.utime(unet / "diffusion_pytorch_model.safetensors", ns=(1, 1)),
        lambda: (unet / "config.json").write_text((unet / "config.json").read_text() + "\n"),
        lambda: (file.parent / "a" / "model_index.json").unlink(),
    ):
        changed()
        assert identity() not in seen
        seen.add(identity())
    last = identity()
    (file.parent / "a" / "README.md").write_text("not loaded")
    assert identity() == last


def test_an_identity_follows_the_files_of_config_and_vae(file: Path) -> None:
    single = file.parent / "x.safetensors"
    vae = file.parent / "vae.safetensors"
    for place in (single, vae):
        place.write_bytes(sha256(b"x").digest())
    text = table(source="./x.safetensors", config='"./a"', vae='"./vae.safetensors"')
    save(file, text)
    seen = {read(file).resolve(None).identity}
    for place in (single, vae, file.parent / "a" / "vae" / "config.json"):
        os.utime(place, ns=(1, 1))
        seen.add(read(file).resolve(None).identity)
    assert len(seen) == 4


def test_a_model_that_is_not_there_has_no_stamp(file: Path) -> None:
    save(file, table(source="./nowhere") + table("hub", "org/model"))
    assert [entry.stamp for entry in read(file).entries.values()] == ["", ""]


def test_the_log_tells_what_an_edit_came_to(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with fake(file) as running:
        save(file, 'default = "b"\n' + table("b", "./b") + table(steps=9))
        eventually(lambda: "b" in models(running))
    assert "was read again: added b; changed a; default b" in caplog.text
