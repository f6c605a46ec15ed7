"""Hashes of weights: what they are taken of, that a file is read once, and that no cache can do harm."""

import asyncio
import json
import logging
import os
import shutil
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

import pipelines.hashing
from pipelines.catalog import ModelEntry
from pipelines.errors import CheckpointError, NotHashed
from pipelines.hashing import FileHashes, model_hash
from pipelines.sources import stamp_of
from server.weights import WeightHashes
from tests.fakes import entry
from tests.test_checkpoint import header, reindex, tensor, write

SDXL_PARTS = sorted({"unet", "vae", "text_encoder", "text_encoder_2"})


def stem(part: str) -> str:
    return "model" if part.startswith("text") else "diffusion_pytorch_model"


def weights(number: int) -> bytes:
    """A safetensors file of one number, so that each can differ."""
    return header({"w": tensor(0, 4, [1])}, number.to_bytes(4, "little"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in diffusers' layout whose files of weights all differ."""
    place = write(tmp_path / "model")
    for number, part in enumerate(SDXL_PARTS):
        (place / part / f"{stem(part)}.safetensors").write_bytes(weights(number))
    return place


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to hash them."""
    read: list[Path] = []
    original = FileHashes._read

    def noted(self: FileHashes, file: Path) -> object:
        read.append(file)
        return original(self, file)

    monkeypatch.setattr(FileHashes, "_read", noted)
    return read


def of(source: Path, **changes: object) -> ModelEntry:
    """A model as it would stand in a catalogue that was read now."""
    made = entry("m", source=str(source), **changes)
    return replace(made, stamp=stamp_of(made))


def hashed(model: ModelEntry, cache: Path | None = None) -> str:
    return model_hash(model, FileHashes(cache).of)


def listed(files: dict[str, Path]) -> str:
    """What `sha256sum NAME... | sha256sum` prints in the folder."""
    lines = [f"{sha256(files[name].read_bytes()).hexdigest()}  {name}\n" for name in sorted(files)]
    return sha256("".join(lines).encode()).hexdigest()


def own(folder: Path, *left_out: str) -> dict[str, Path]:
    names = [f"{part}/{stem(part)}.safetensors" for part in SDXL_PARTS if part not in left_out]
    return {name: folder / name for name in names}


def test_a_single_files_hash_is_that_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(weights(7))
    model = of(file, config="org/base")
    assert hashed(model) == sha256(file.read_bytes()).hexdigest()
    assert hashed(replace(model, vae="org/vae")) == hashed(model), "everybody knows the file by its own hash"


def test_a_folders_hash_is_that_of_its_list_of_files(folder: Path) -> None:
    assert hashed(of(folder)) == listed(own(folder))


def test_where_a_folder_lies_and_what_it_is_called_does_not_count(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert hashed(of(copy)) == hashed(of(folder))


@pytest.mark.parametrize("part", SDXL_PARTS)
def test_every_part_counts(folder: Path, part: str) -> None:
    before = hashed(of(folder))
    (folder / part / f"{stem(part)}.safetensors").write_bytes(weights(99))
    assert hashed(of(folder)) != before


def test_what_is_not_loaded_does_not_count(folder: Path) -> None:
    before = hashed(of(folder))
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(weights(50))
    (folder / "image_encoder").mkdir()
    (folder / "image_encoder" / "model.safetensors").write_bytes(weights(51))
    (folder / "README.md").write_text("hello")
    assert hashed(of(folder)) == before


def test_a_variant_has_its_own_files_where_there_are_some(folder: Path) -> None:
    half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    half.write_bytes(weights(50))
    files = own(folder, "unet") | {"unet/diffusion_pytorch_model.fp16.safetensors": half}
    assert hashed(of(folder, variant="fp16")) == listed(files)


def test_every_shard_counts(folder: Path) -> None:
    unet = folder / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    shards = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(shards):
        (unet / name).write_bytes(weights(60 + number))
    weight_map = {f"w{number}": name for number, name in enumerate(shards)}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    files = own(folder, "unet") | {f"unet/{name}": unet / name for name in shards}
    assert hashed(of(folder)) == listed(files)


def test_a_part_that_is_left_out_does_not_count(folder: Path) -> None:
    (folder / "text_encoder_3").mkdir()
    (folder / "text_encoder_3" / "model.safetensors").write_bytes(weights(70))
    reindex(folder, text_encoder_3=["transformers", "T5EncoderModel"])
    assert hashed(of(folder, t5=False)) == listed(own(folder))
    assert hashed(of(folder, t5=True)) != hashed(of(folder, t5=False))


def test_another_vae_counts_in_place_of_the_checkpoints_own(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "better.safetensors"
    file.write_bytes(weights(80))
    assert hashed(of(folder, vae=str(file))) == listed(own(folder, "vae") | {"vae/better.safetensors": file})
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(weights(81))
    assert hashed(of(folder, vae=str(file))) == listed(own(folder, "vae") | {"vae/better.safetensors": file})


def hub(folder: Path, cache: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay a folder out as the hub's cache does: large files by their SHA-256, small ones by git's SHA-1."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = place / "snapshots" / ("c" * 40), place / "blobs"
    blobs.mkdir(parents=True)
    for file in [file for file in sorted(folder.rglob("*")) if file.is_file()]:
        digits = sha256(file.read_bytes()).hexdigest()
        blob = blobs / (digits if file.suffix == ".safetensors" else digits[:40])
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("c" * 40)
    return snapshot


def test_a_hub_id_has_its_folders_hash_and_no_large_file_is_read_for_it(
    folder: Path, tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(folder, tmp_path / "hub", "org/model", monkeypatch)
    found = model_hash(entry("m", source="org/model"), FileHashes(None).of)
    assert reads == []
    assert found == listed(own(folder))


def test_a_hubs_file_that_bears_no_hash_is_read(
    folder: Path, tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = hub(folder, tmp_path / "hub", "org/model", monkeypatch)
    link = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    link.resolve().rename(link.resolve().with_name("a" * 40))
    link.unlink()
    link.symlink_to(tmp_path / "hub" / "models--org--model" / "blobs" / ("a" * 40))
    assert model_hash(entry("m", source="org/model"), FileHashes(None).of) == listed(own(folder))
    assert reads == [link]


def test_a_hubs_vae_counts_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tmp_path / "vae"
    vae.mkdir()
    (vae / "config.json").write_text("{}")
    (vae / "diffusion_pytorch_model.safetensors").write_bytes(weights(90))
    with pytest.raises(CheckpointError, match="org/vae is not in the hub's cache yet"):
        hashed(of(folder, vae="org/vae"))
    hub(vae, tmp_path / "hub", "org/vae", monkeypatch)
    name = "vae/diffusion_pytorch_model.safetensors"
    assert hashed(of(folder, vae="org/vae")) == listed(own(folder, "vae") | {name: vae / name.partition("/")[2]})


def test_what_is_not_there_has_no_hash_and_says_why(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="org/nothing is not in the hub's cache yet"):
        hashed(entry("m", source="org/nothing"))
    with pytest.raises(CheckpointError, match=r"nowhere.*cannot be read"):
        hashed(of(tmp_path / "nowhere"))
    shutil.rmtree(folder / "unet")
    with pytest.raises(CheckpointError, match=r"weights of model 'm' cannot be read.*unet"):
        hashed(of(folder))


def test_files_that_changed_since_models_toml_was_read_have_no_hash(folder: Path) -> None:
    model = of(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(weights(1234))
    with pytest.raises(CheckpointError, match="changed since models.toml was read; save it again"):
        hashed(model)
    assert hashed(of(folder)) == listed(own(folder))


def test_files_that_change_while_they_are_hashed_have_no_hash(folder: Path) -> None:
    hashes = FileHashes(None)

    def late(file: Path) -> str:
        digits = hashes.of(file)
        file.write_bytes(weights(4321))
        return digits

    with pytest.raises(CheckpointError, match="changed since"):
        model_hash(of(folder), late)


def test_a_file_that_grows_while_it_is_read_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(b"x" * 100)

    class Growing:
        """Stands for the switch that is asked between two pieces."""

        def is_set(self) -> bool:
            with file.open("ab") as stream:
                stream.write(b"y")
            return False

    hashes = FileHashes(None)
    monkeypatch.setattr(pipelines.hashing, "_CHUNK_BYTES", 40)
    hashes._halted = Growing()  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="changed while it was hashed"):
        hashes.of(file)
    assert hashes._known == {}


def test_a_file_is_read_once_even_by_the_next_process(folder: Path, tmp_path: Path, reads: list[Path]) -> None:
    cache = tmp_path / "hashes.json"
    first = hashed(of(folder), cache)
    assert len(reads) == len(SDXL_PARTS)
    assert hashed(of(folder), cache) == first
    assert model_hash(of(folder), FileHashes(cache).recall) == first
    assert len(reads) == len(SDXL_PARTS)
    assert os.stat(cache).st_mode & 0o077 == 0
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("hashes")] == ["hashes.json"]


def test_a_changed_file_alone_is_read_again(folder: Path, tmp_path: Path, reads: list[Path]) -> None:
    cache = tmp_path / "hashes.json"
    first = hashed(of(folder), cache)
    reads.clear()
    changed = folder / "unet" / "diffusion_pytorch_model.safetensors"
    os.utime(changed, ns=(1, 1))
    assert hashed(of(folder), cache) == first
    changed.write_bytes(weights(1234))
    assert hashed(of(folder), cache) == listed(own(folder)) != first
    assert reads == [changed, changed]


def test_two_processes_share_a_cache(folder: Path, tmp_path: Path, reads: list[Path]) -> None:
    cache = tmp_path / "hashes.json"
    one, other = FileHashes(cache), FileHashes(cache)
    files = list(own(folder).values())
    one.of(files[0])
    other.of(files[1])
    one.of(files[2])
    reads.clear()
    for file in files[:3]:
        FileHashes(cache).recall(file)
    assert reads == []


DAMAGED = {
    "nothing": b"",
    "no JSON": b"{",
    "another shape": b'["a"]',
    "half an entry": b'{"/x": {"size": 1}}',
    "no hash": b'{"/x": {"size": 1, "mtime_ns": 1, "sha256": "zz"}}',
    "too deep": b"[" * 100_000,
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_cache_is_replaced(
    folder: Path, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "hashes.json"
    cache.write_bytes(content)
    assert hashed(of(folder), cache) == listed(own(folder))
    assert "is not used" in caplog.text
    assert model_hash(of(folder), FileHashes(cache).recall) == listed(own(folder))


def test_a_cache_that_cannot_be_written_costs_time_alone(
    folder: Path, tmp_path: Path, reads: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    hashes = FileHashes(tmp_path / "nowhere" / "hashes.json")
    for _ in range(2):
        assert model_hash(of(folder), hashes.of) == listed(own(folder))
    assert len(reads) == len(SDXL_PARTS), "this process remembers them"
    assert "cannot be written" in caplog.text
    (tmp_path / "folder.json").mkdir()
    assert hashed(of(folder), tmp_path / "folder.json") == listed(own(folder))
    assert not list(tmp_path.glob("*.part"))


def test_recalling_reads_nothing(folder: Path, reads: list[Path]) -> None:
    with pytest.raises(NotHashed):
        model_hash(of(folder), FileHashes(None).recall)
    assert reads == []


@pytest.mark.anyio
async def test_pictures_wait_for_one_hashing_between_them(folder: Path, reads: list[Path]) -> None:
    weights_of = WeightHashes(None)
    model = of(folder)
    weights_of.begin(model)
    assert weights_of.known(model) is None
    found = await asyncio.gather(*(weights_of.of(model) for _ in range(5)))
    assert set(found) == {listed(own(folder))} == {weights_of.known(model)}
    assert len(reads) == len(SDXL_PARTS)


@pytest.mark.anyio
async def test_a_models_former_weights_keep_their_hash(folder: Path) -> None:
    weights_of = WeightHashes(None)
    old, was = of(folder), listed(own(folder))
    await weights_of.of(old)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(weights(1234))
    new = of(folder)
    assert new.identity != old.identity
    assert (await weights_of.of(old), await weights_of.of(new)) == (was, listed(own(folder)))


@pytest.mark.anyio
async def test_a_model_that_is_loaded_again_from_other_files_has_no_hash(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights_of = WeightHashes(None)
    model = of(folder)
    await weights_of.of(model)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(weights(1234))
    weights_of.begin(model, anew=True)
    assert [await weights_of.of(model) for _ in range(3)] == [None] * 3
    assert caplog.text.count("carry no hash of its weights") == 1, "it is told once"


@pytest.mark.anyio
async def test_a_halt_ends_the_reading_and_the_waiting(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    reading, go_on = threading.Event(), threading.Event()
    original = FileHashes._read

    def slow(self: FileHashes, file: Path) -> object:
        reading.set()
        assert go_on.wait(30)
        return original(self, file)

    monkeypatch.setattr(FileHashes, "_read", slow)
    weights_of = WeightHashes(None)
    waiting = asyncio.create_task(weights_of.of(of(folder)))
    await asyncio.to_thread(reading.wait, 30)
    weights_of.halt()
    go_on.set()
    assert await waiting is None
    assert "no hash" not in caplog.text
