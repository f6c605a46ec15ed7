"""Inspecting checkpoints: what is broken, foreign or could run code is refused by name before any library opens it."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.checkpoint import inspect_checkpoint, parts_lacking
from pipelines.errors import CheckpointError
from pipelines.headers import read_header, read_json
from pipelines.layouts import LAYOUTS
from pipelines.sources import find_checkpoint, inspect_entry
from tests.single_file import write_sd3, write_vae

SDXL = "StableDiffusionXLPipeline"
SD3 = "StableDiffusion3Pipeline"
UNET = "unet/diffusion_pytorch_model.safetensors"


def header(tensors: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(first: int, last: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def components(pipeline: str) -> dict[str, list[str]]:
    shared = {
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if pipeline == SDXL:
        return shared | {"unet": ["diffusers", "UNet2DConditionModel"]}
    own = {"transformer": ["diffusers", "SD3Transformer2DModel"]}
    return shared | own | {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}


def write(folder: Path, pipeline: str = SDXL) -> Path:
    """A folder in diffusers' layout whose weights are one number each."""
    parts = components(pipeline)
    for name, (library, _) in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
        stem = "model" if library == "transformers" else "diffusion_pytorch_model"
        if name != "scheduler" and "tokenizer" not in name:
            (folder / name / f"{stem}.safetensors").write_bytes(header({"w": tensor(0, 4, [1])}, b"\0" * 4))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, "force_zeros": True, **parts}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model")


def reindex(folder: Path, **changes: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(read_json(file) | changes))


@pytest.mark.parametrize("pipeline", list(LAYOUTS))
def test_a_whole_folder_is_measured(tmp_path: Path, pipeline: str) -> None:
    size = inspect_checkpoint(write(tmp_path / "model", pipeline), pipeline)
    assert (size.files, size.parameters) == (4, 4)
    assert size.disk_bytes == 4 * len(header({"w": tensor(0, 4, [1])}, b"\0" * 4))


BROKEN = {
    "empty": b"",
    "seven bytes": b"\1" * 7,
    "zeros": b"\0" * 1000,
    "header of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "header longer than the file": header({"w": tensor(0, 4, [1])}, b"\0" * 4, length=5000),
    "truncated": header({"w": tensor(0, 4000, [1000])}, b"\0" * 3000),
    "NUL padding": header({"w": tensor(0, 4, [1])}, b"\0" * 4096),
    "overlapping": header({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, b"\0" * 12),
    "a gap": header({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, b"\0" * 12),
    "backwards": header({"a": tensor(8, 4, [1])}, b"\0" * 4),
    "wrong shape": header({"w": tensor(0, 4, [1000])}, b"\0" * 4),
    "negative shape": header({"w": tensor(0, 4, [-1, -1])}, b"\0" * 4),
    "a shape of no numbers": header({"w": tensor(0, 4, ["1"])}, b"\0" * 4),
    "a shape of truths": header({"w": tensor(0, 4, [True])}, b"\0" * 4),
    "an infinite shape": header({"w": tensor(0, 4, [float("inf")])}, b"\0" * 4),
    "unknown dtype": header({"w": tensor(0, 4, [1], "Q4_K")}, b"\0" * 4),
    "no dtype": header({"w": {"shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "a tensor of no table": header({"w": 3}, b""),
    "not JSON": struct.pack("<Q", 8) + b"notjson!" + b"\0" * 8,
    "not UTF-8": struct.pack("<Q", 4) + b'{"\xff"' + b"\0" * 8,
    "a list": struct.pack("<Q", 2) + b"[]",
    "too deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a name twice": header({"a": tensor(0, 4, [1]), "b": tensor(0, 4, [1])}, b"\0" * 4).replace(b'"b"', b'"a"'),
    "a pickle": b"\x80\x04\x95" + b"\0" * 100,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_file_is_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / UNET).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors .*fetch it again"):
        inspect_checkpoint(folder, SDXL)


def test_every_good_header_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    tensors = {
        "b": tensor(4, 8, [2], "F16"),
        "a": tensor(0, 4, [1]),
        "none": tensor(4, 4, [0]),
        "f": tensor(8, 9, [2], "F4"),
    }
    file.write_bytes(header({"__metadata__": {"format": "pt"}, **tensors}, b"\0" * 9))
    assert read_header(file) == tensors


class Canary:
    """Unpickling this makes the file that it names."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.file),)


def write_pickle(file: Path, canary: Path) -> None:
    import pickle  # noqa: TID251 - written, never read

    file.write_bytes(pickle.dumps(Canary(canary)))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "x.pt", "x.pth", "x.pkl", "x.PT"])
def test_a_component_that_is_only_a_pickle_is_refused_and_never_run(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / UNET).unlink()
    write_pickle(folder / "unet" / name, tmp_path / "canary")
    with pytest.raises(CheckpointError, match="is a pickle, which can run code; convert it"):
        inspect_checkpoint(folder, SDXL)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.Safetensors"])
def test_a_pickle_under_another_name_is_refused_and_never_run(folder: Path, tmp_path: Path, name: str) -> None:
    from diffusers import StableDiffusionXLPipeline

    from pipelines.families import family_facts
    from pipelines.loading import load_pipeline
    from pipelines.models_toml import load_catalog

    (folder / UNET).unlink()
    write_pickle(tmp_path / "hidden", tmp_path / "canary")
    (folder / "unet" / name).symlink_to(tmp_path / "hidden")
    with pytest.raises(CheckpointError, match="not a whole safetensors file|holds no weights"):
        inspect_checkpoint(folder, SDXL)
    (tmp_path / "models.toml").write_text('[models.x]\nfamily = "sdxl"\nsource = "./model"')
    with pytest.raises(CheckpointError):
        load_pipeline(
            StableDiffusionXLPipeline, load_catalog(tmp_path / "models.toml", family_facts()).resolve("x"), None
        )
    assert not (tmp_path / "canary").exists()
    import pickle  # noqa: TID251 - to show that the canary sings

    pickle.loads((tmp_path / "hidden").read_bytes())  # noqa: S301
    assert (tmp_path / "canary").exists()


def test_a_symlinked_bin_is_a_pickle_too(folder: Path, tmp_path: Path) -> None:
    (folder / UNET).rename(tmp_path / "elsewhere.safetensors")
    (folder / "unet" / "diffusion_pytorch_model.bin").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        inspect_checkpoint(folder, SDXL)


def test_a_pickle_beside_the_same_weights_as_safetensors_is_left_alone(folder: Path, tmp_path: Path) -> None:
    write_pickle(folder / "unet" / "diffusion_pytorch_model.bin", tmp_path / "canary")
    inspect_checkpoint(folder, SDXL)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("name", "shard"),
    [
        ("safetensors", "a.bin"),
        ("safetensors", "../a.safetensors"),
        ("safetensors", "/a.safetensors"),
        ("bin", "a.bin"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(folder: Path, name: str, shard: str) -> None:
    (folder / UNET).unlink()
    index = folder / "unet" / f"diffusion_pytorch_model.{name}.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(CheckpointError, match="index.json (points to|is a pickle)"):
        inspect_checkpoint(folder, SDXL)


def shard(folder: Path, variant: str = "") -> list[Path]:
    """Split the UNet in two files and an index."""
    names = [f"diffusion_pytorch_model{variant}-0000{part}-of-00002.safetensors" for part in (1, 2)]
    for name in names:
        (folder / "unet" / name).write_bytes(header({"w": tensor(0, 8, [2])}, b"\0" * 8))
    index = folder / "unet" / f"diffusion_pytorch_model.safetensors.index{variant}.json"
    index.write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    return [folder / "unet" / name for name in names]


def test_sharded_weights_are_measured_and_missing_shards_named(folder: Path) -> None:
    (folder / UNET).unlink()
    first, second = shard(folder)
    size = inspect_checkpoint(folder, SDXL)
    assert (size.files, size.parameters) == (5, 7)
    second.unlink()
    with pytest.raises(CheckpointError, match=f"lacks '{second.name}'.*fetch it again"):
        inspect_checkpoint(folder, SDXL)
    first.with_name("diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="lists no weights"):
        inspect_checkpoint(folder, SDXL)


def test_the_variants_files_are_the_ones_that_count(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(
        header({"w": tensor(0, 6, [3], "F16")}, b"\0" * 6)
    )
    shard(folder, ".fp16")
    assert inspect_checkpoint(folder, SDXL).parameters == 4
    size = inspect_checkpoint(folder, SDXL, "fp16")
    assert (size.files, size.parameters) == (5, 2 + 3 + 4)


def test_weights_of_another_variant_only_name_the_remedy(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(CheckpointError, match='holds no weights .* set variant = "fp16"'):
        inspect_checkpoint(folder, SDXL)


@pytest.mark.parametrize(
    "changes",
    [
        {"unet": ["diffusers", "SomethingElse"]},
        {"unet": ["somewhere", "UNet2DConditionModel"]},
        {"unet": ["transformers", "UNet2DConditionModel"]},
        {"unet": ["diffusers", ["UNet2DConditionModel"]]},
        {"unet": ["diffusers", "UNet2DConditionModel", "x"]},
        {"text_encoder": ["transformers", "AutoModel"]},
        {"scheduler": ["diffusers", "MyScheduler"]},
        {"scheduler": ["diffusers", "EDMEulerScheduler"]},
        {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]},
        {"scheduler": ["scheduler", "EulerDiscreteScheduler"]},
        {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]},
        {"extra": ["os", "system"]},
    ],
    ids=str,
)
def test_a_class_that_is_not_known_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    reindex(folder, **changes)
    with pytest.raises(CheckpointError, match=f"component '{next(iter(changes))}' names .* not a known safe class"):
        inspect_checkpoint(folder, SDXL)


@pytest.mark.parametrize("name", ["pipeline.py", "unet/my_unet.py", "scheduler/scheduler.py"])
def test_a_folder_with_code_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("raise SystemExit('it ran')")
    with pytest.raises(CheckpointError, match=rf"{name} is code"):
        inspect_checkpoint(folder, SDXL)


@pytest.mark.parametrize(
    "key",
    [
        "auto_map",
        "custom_pipeline",
        "trust_remote_code",
        "attn_implementation",
        "_attn_implementation_internal",
        "_experts_implementation",
    ],
)
@pytest.mark.parametrize("place", ["", "text_encoder/config.json", "tokenizer/tokenizer_config.json"])
def test_a_configuration_that_points_to_code_is_refused(folder: Path, key: str, place: str) -> None:
    file = folder / (place or "model_index.json")
    file.write_text(json.dumps((read_json(file) if file.exists() else {}) | {key: "some/repository--x.Y"}))
    with pytest.raises(CheckpointError, match=rf"{file.name} points to code with '{key}'"):
        inspect_checkpoint(folder, SDXL)


def test_code_is_found_at_any_depth_and_the_librarys_own_kernels_are_none(folder: Path) -> None:
    file = folder / "text_encoder" / "config.json"
    config = read_json(file)
    file.write_text(json.dumps(config | {"attn_implementation": "sdpa", "auto_map": None}))
    inspect_checkpoint(folder, SDXL)
    file.write_text(json.dumps(config | {"text_config": [{"attn_implementation": "somebody/kernel"}]}))
    with pytest.raises(CheckpointError, match="points to code with 'attn_implementation'"):
        inspect_checkpoint(folder, SDXL)


@pytest.mark.parametrize("named", [SD3, [SDXL], ["pipeline", SDXL], None, "DiffusionPipeline"], ids=str)
def test_another_pipeline_is_refused(folder: Path, named: Any) -> None:
    reindex(folder, _class_name=named)
    with pytest.raises(CheckpointError, match="is of class .* set the `family`"):
        inspect_checkpoint(folder, SDXL)


def test_a_folder_of_the_other_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="StableDiffusion3Pipeline.*, not StableDiffusionXLPipeline"):
        inspect_checkpoint(write(tmp_path / "model", SD3), SDXL)


@pytest.mark.parametrize("component", ["unet", "vae", "scheduler", "text_encoder_2", "tokenizer"])
def test_a_missing_component_is_named(folder: Path, component: str) -> None:
    shutil.rmtree(folder / component)
    with pytest.raises(CheckpointError, match=f"lacks the folder '{component}'"):
        inspect_checkpoint(folder, SDXL)
    inspect_checkpoint(folder, SDXL, left_out=[component])
    reindex(folder, **{component: [None, None]})
    with pytest.raises(CheckpointError, match=f"names no '{component}'"):
        inspect_checkpoint(folder, SDXL)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; correct `source`"):
        inspect_checkpoint(tmp_path / "gone", SDXL)
    with pytest.raises(CheckpointError, match="no model_index.json"):
        inspect_checkpoint(tmp_path, SDXL)
    for content in ("[]", "{", '"x"', "\x00", "[" * 5000):
        (tmp_path / "model_index.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"model_index\.json (cannot be read|is not a JSON object)"):
            inspect_checkpoint(tmp_path, SDXL)
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="does not exist"):
        inspect_checkpoint(tmp_path / "dangling", SDXL)
    with pytest.raises(CheckpointError, match="cannot be read"):
        inspect_checkpoint(tmp_path / ("x" * 300), SDXL)


@pytest.mark.parametrize("suffix", [".ckpt", ".Safetensors", ".SAFETENSORS", ".bin", ".safetensors.bin", ""])
def test_a_single_file_of_another_format_is_refused(tmp_path: Path, suffix: str) -> None:
    write_pickle(tmp_path / f"model{suffix}", tmp_path / "canary")
    with pytest.raises(CheckpointError, match=r"is not a \.safetensors file"):
        inspect_checkpoint(tmp_path / f"model{suffix}", SDXL)
    assert not (tmp_path / "canary").exists()


def test_a_single_file_is_known_by_its_networks_tensors(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    names = {SDXL: "model.diffusion_model.input_blocks.0.0.weight", SD3: "joint_blocks.0.x_block.attn.qkv.weight"}
    for pipeline, name in names.items():
        file.write_bytes(header({name: tensor(0, 4, [1])}, b"\0" * 4))
        assert inspect_checkpoint(file, pipeline).parameters == 1
        (other,) = names.keys() - {pipeline}
        with pytest.raises(CheckpointError, match=f"holds the network of {pipeline}, not that of {other}"):
            inspect_checkpoint(file, other)
    file.write_bytes(header({"conv_in.weight": tensor(0, 4, [1])}, b"\0" * 4))
    with pytest.raises(CheckpointError, match="no network in the original single-file layout"):
        inspect_checkpoint(file, SDXL)


def test_the_parts_that_a_single_file_lacks(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    held = ["first_stage_model.decoder.conv_in.weight", "text_encoders.clip_g.transformer.x"]
    file.write_bytes(header({name: tensor(4 * i, 4 * i + 4, [1]) for i, name in enumerate(held)}, b"\0" * 8))
    assert parts_lacking(file, SD3) == ["text_encoder", "text_encoder_3"]


def test_inspecting_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import pipelines.sources, sys; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_all_that_an_entry_is_built_from_is_inspected(checkpoints: Path, catalog: Any, tmp_path: Path) -> None:
    whole = inspect_entry(catalog.resolve("tiny-sd3"), SD3)
    assert whole == inspect_checkpoint(checkpoints / "sd3", SD3)
    write_sd3(checkpoints / "sd3", tmp_path / "network.safetensors", parts=["vae"])
    entry = replace(
        catalog.resolve("tiny-sd3"),
        source=str(tmp_path / "network.safetensors"),
        config=str(checkpoints / "sd3"),
        vae=str(checkpoints / "sd3" / "vae"),
    )
    mixed = inspect_entry(entry, SD3)
    assert whole is not None and mixed is not None
    vae = inspect_checkpoint(checkpoints / "sd3", SD3, left_out=["transformer", "text_encoder", "text_encoder_2"])
    assert mixed.parameters == whole.parameters + vae.parameters, "the file's own VAE lies there as well"
    for key in ("config", "vae"):
        with pytest.raises(CheckpointError, match="nowhere"):
            inspect_entry(replace(entry, **{key: str(tmp_path / "nowhere")}), SD3)


def test_an_entrys_vae_is_inspected_even_before_its_source_is_there(
    checkpoints: Path, catalog: Any, tmp_path: Path
) -> None:
    entry = replace(catalog.resolve("tiny-sd3"), source="somebody/something-never-fetched")
    vae = tmp_path / "vae"
    shutil.copytree(checkpoints / "sd3" / "vae", vae)
    assert inspect_entry(replace(entry, vae=str(vae)), SD3) is None
    with pytest.raises(CheckpointError, match="correct `vae`"):
        inspect_entry(replace(entry, vae=f"{vae}.safetensors"), SD3)
    write_pickle(tmp_path / "vae.pt", tmp_path / "canary")
    with pytest.raises(CheckpointError, match=r"is not a \.safetensors file"):
        inspect_entry(replace(entry, vae=str(tmp_path / "vae.pt")), SD3)
    (vae / "more.py").write_text("")
    with pytest.raises(CheckpointError, match="is code"):
        inspect_entry(replace(entry, vae=str(vae)), SD3)
    (vae / "more.py").unlink()
    (vae / "config.json").unlink()
    with pytest.raises(CheckpointError, match="has no config.json"):
        inspect_entry(replace(entry, vae=str(vae)), SD3)


def test_what_a_hubs_cache_lacks_is_downloaded_and_no_fault(
    checkpoints: Path, catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "snapshot"
    shutil.copytree(checkpoints / "sd3", cached)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, file, **__: str(cached / file))
    entry = replace(catalog.resolve("tiny-sd3"), source="somebody/model")
    assert inspect_entry(entry, SD3) == inspect_checkpoint(checkpoints / "sd3", SD3)
    reindex(cached, text_encoder_3=5)
    with pytest.raises(CheckpointError, match="'text_encoder_3' must be"):
        inspect_entry(entry, SD3)
    reindex(cached, text_encoder_3=[None, None])
    shutil.rmtree(cached / "transformer")
    assert inspect_entry(entry, SD3) is None
    (cached / "text_encoder" / "more.py").write_text("")
    with pytest.raises(CheckpointError, match="is code"):
        inspect_entry(entry, SD3)


def test_a_vae_of_the_hub_is_inspected_in_its_cache(
    checkpoints: Path, catalog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = checkpoints / "sd3" / "vae"
    entry = replace(catalog.resolve("tiny-sd3"), vae="somebody/vae")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    assert inspect_entry(entry, SD3) is None
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, file, **__: str(vae / file))
    assert inspect_entry(entry, SD3) == inspect_checkpoint(checkpoints / "sd3", SD3)


def test_a_vae_in_one_file_needs_a_configuration_beside_the_checkpoint(
    checkpoints: Path, catalog: Any, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints / "sd3", tmp_path / "model")
    vae = write_vae(tmp_path / "model" / "vae", tmp_path / "vae.safetensors")
    entry = replace(catalog.resolve("tiny-sd3"), source=str(tmp_path / "model"), vae=str(vae))
    assert inspect_entry(entry, SD3) is not None
    shutil.rmtree(tmp_path / "model" / "vae")
    with pytest.raises(CheckpointError, match="lacks vae/config.json, by which the VAE .* is configured"):
        inspect_entry(entry, SD3)


def test_a_checkpoint_is_found_where_the_catalogue_says(checkpoints: Path, catalog: Any) -> None:
    assert find_checkpoint(catalog.resolve("tiny-sdxl")) == checkpoints / "sdxl"
