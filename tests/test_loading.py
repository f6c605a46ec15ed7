"""Loading: folders and single files, offline, give the very same weights; what is broken is a CheckpointError."""

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionXLPipeline
from PIL.Image import Image
from safetensors.torch import load_file, save_file

from pipelines.catalog import Catalog, ModelEntry, name_of
from pipelines.denoising import Denoising
from pipelines.device import pick_device
from pipelines.engine import Engine
from pipelines.errors import CheckpointError
from pipelines.families import family_facts
from pipelines.loading import load_pipeline
from pipelines.models_toml import load_catalog
from pipelines.request import Wishes, settle
from tests import single_file

PIPELINES = {"sdxl": StableDiffusionXLPipeline, "sd3": StableDiffusion3Pipeline}
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture(autouse=True)
def no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects anywhere fails."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"something connects to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def files(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoints as folders and as single files, and a models.toml that names all."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copytree(checkpoints / "sdxl", folder / "sdxl")
    shutil.copytree(checkpoints / "sd3-t5", folder / "sd3")
    single_file.make_first_projection_identity(folder / "sd3")
    single_file.write_sdxl(folder / "sdxl", folder / "sdxl.safetensors")
    everything = ("text_encoder", "text_encoder_2", "text_encoder_3", "vae")
    single_file.write_sd3(folder / "sd3", folder / "sd3.safetensors", everything)
    single_file.write_sd3(folder / "sd3", folder / "sd3-clips.safetensors")
    single_file.write_sd3(folder / "sd3", folder / "sd35.safetensors", ["vae"])
    single_file.write_vae(folder / "sdxl" / "vae", folder / "vae.safetensors")
    tables = [_table(name, name.partition("-")[0].replace("sd35", "sd3"), f"./{name}.safetensors") for name in SINGLE]
    tables += [_table("sdxl-folder", "sdxl", "./sdxl"), _table("sd3-folder", "sd3", "./sd3")]
    (folder / "models.toml").write_text("\n".join(tables))
    return folder


UNET_TENSOR = "model.diffusion_model.middle_block.0.in_layers.0.weight"
SINGLE = ("sdxl", "sd3", "sd3-clips", "sd35")


def _table(name: str, family: str, source: str) -> str:
    config = f'config = "./{family}"\n' if source.endswith(".safetensors") else ""
    return f'[models."{name}"]\nfamily = "{family}"\nsource = "{source}"\nsize = "32x32"\nsteps = 2\n{config}'


@pytest.fixture(scope="module")
def models(files: Path) -> Catalog:
    return load_catalog(files / "models.toml", family_facts())


def load(entry: ModelEntry, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
    return load_pipeline(PIPELINES[entry.family], entry, dtype, **components)


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": tensor
        for component, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module)
        for name, tensor in module.state_dict().items()
    }


def picture(engine: Engine, entry: ModelEntry) -> Image:
    request = settle(Wishes("a red hat"), entry, seed=5)
    engine.load(entry)
    (image,) = engine.begin(entry, [request], engine.encode(entry, [request]))
    assert isinstance(image, Denoising), image
    while not image.finished:
        assert engine.step(entry, [image]) == [None]
    (made,) = engine.finish(entry, [image])
    assert isinstance(made, Image), made
    return made


@pytest.mark.parametrize("name", ["tiny-sdxl", "tiny-sd3", "tiny-sd3-t5"])
def test_a_folder_loads_offline_and_makes_a_picture(catalog: Catalog, name: str) -> None:
    assert picture(Engine(pick_device("cpu")), catalog.resolve(name)).size == (32, 32)


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_file_gives_the_folders_own_bits(models: Catalog, name: str) -> None:
    entry = models.resolve(name)
    from_file, from_folder = weights(load(entry)), weights(load(models.resolve(f"{entry.family}-folder")))
    assert from_file.keys() == from_folder.keys()
    assert [key for key, tensor in from_folder.items() if not torch.equal(from_file[key], tensor)] == []


@pytest.mark.parametrize("name", ["sdxl", "sd35"])
def test_a_single_file_makes_the_folders_own_picture(models: Catalog, name: str) -> None:
    engine = Engine(pick_device("cpu"))
    entry = models.resolve(name)
    assert picture(engine, entry).tobytes() == picture(engine, models.resolve(f"{entry.family}-folder")).tobytes()


def test_a_single_file_without_t5_asks_for_none(models: Catalog, files: Path, tmp_path: Path) -> None:
    config = tmp_path / "config"
    shutil.copytree(files / "sd3", config)
    for component in ("text_encoder_3", "tokenizer_3", "transformer"):
        for file in (config / component).glob("*"):
            if component != "transformer" or file.suffix == ".safetensors":
                file.unlink()
        if component != "transformer":
            (config / component).rmdir()
    entry = replace(models.resolve("sd3-clips"), config=str(config), t5=False)
    pipeline = load(entry, **NO_T5)
    assert pipeline.text_encoder_3 is None
    assert pipeline.text_encoder_2 is not None


def test_a_part_from_the_config_folder_with_a_tensor_missing_is_refused(
    models: Catalog, files: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    shutil.copytree(files / "sd3", config)
    (weights_file,) = (config / "text_encoder").glob("*.safetensors")
    tensors = load_file(weights_file)
    del tensors["text_model.encoder.layers.0.mlp.fc1.weight"]
    save_file(tensors, weights_file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="text_encoder holds .* tensors"):
        load(replace(models.resolve("sd35"), config=str(config)))


def test_a_single_file_whose_encoders_are_nowhere_says_so(models: Catalog, files: Path, tmp_path: Path) -> None:
    config = tmp_path / "config"
    shutil.copytree(files / "sd3", config, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(CheckpointError, match="holds no text_encoder, so it is taken from the `config` folder"):
        load(replace(models.resolve("sd35"), config=str(config)))


@pytest.mark.parametrize(("name", "family"), [("sdxl", "sd3"), ("sd3", "sdxl")])
def test_a_single_file_of_the_other_family_is_refused(models: Catalog, name: str, family: str) -> None:
    with pytest.raises(CheckpointError, match="holds the network of .* set the `family`"):
        load(replace(models.resolve(name), family=family, config=models.resolve(family).config))


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_single_file_with_a_tensor_missing_is_refused(
    models: Catalog, files: Path, tmp_path: Path, name: str
) -> None:
    tensors = load_file(files / f"{name}.safetensors")
    del tensors["text_encoders.clip_l.transformer.text_model.final_layer_norm.bias" if name == "sd3" else UNET_TENSOR]
    save_file(tensors, tmp_path / "holed.safetensors")
    with pytest.raises(CheckpointError, match=r"(1 tensors are missing\); fetch it again|cannot be loaded: )"):
        load(replace(models.resolve(name), source=str(tmp_path / "holed.safetensors")))


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_folder_with_a_tensor_missing_is_refused(
    models: Catalog, files: Path, tmp_path: Path, component: str
) -> None:
    shutil.copytree(files / "sdxl", tmp_path / "holed")
    (file,) = (tmp_path / "holed" / component).glob("*.safetensors")
    tensors = load_file(file)
    del tensors[sorted(tensors)[7]]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{component} holds .* fetch it again"):
        load(replace(models.resolve("sdxl-folder"), source=str(tmp_path / "holed")))


@pytest.fixture
def other_vae(files: Path, tmp_path: Path) -> Path:
    """A VAE like the model's own, with other weights."""
    torch.manual_seed(99)
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(str(files / "sdxl" / "vae")))
    vae.save_pretrained(tmp_path / "vae")
    single_file.write_vae(tmp_path / "vae", tmp_path / "vae.safetensors")
    return tmp_path / "vae"


@pytest.mark.parametrize("model", ["sdxl-folder", "sdxl"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_another_vae_takes_the_place_of_the_models_own(models: Catalog, other_vae: Path, model: str, kind: str) -> None:
    source = str(other_vae) if kind == "folder" else f"{other_vae}.safetensors"
    vae = load(replace(models.resolve(model), vae=source)).vae
    expected = AutoencoderKL.from_pretrained(other_vae)
    assert vae.config.scaling_factor == 0.13025
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in vae.state_dict().items())


def test_what_nothing_here_uses_is_not_loaded(models: Catalog, files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "sdxl", tmp_path / "sdxl")
    index = tmp_path / "sdxl" / "model_index.json"
    listed = {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | listed))
    assert load(replace(models.resolve("sdxl-folder"), source=str(tmp_path / "sdxl"))).image_encoder is None


def test_a_vae_that_is_not_there_names_the_key_to_correct(models: Catalog, tmp_path: Path) -> None:
    for source in (tmp_path / "gone", tmp_path / "gone.safetensors"):
        with pytest.raises(CheckpointError, match="correct `vae`"):
            load(replace(models.resolve("sdxl-folder"), vae=str(source)))


@pytest.mark.parametrize("name", ["sdxl", "sdxl-folder", "sd3", "sd35", "sd3-folder"])
def test_every_network_has_the_dtype_asked_for(models: Catalog, name: str) -> None:
    dtypes = {tensor.dtype for tensor in weights(load(models.resolve(name), torch.bfloat16)).values()}
    assert {dtype for dtype in dtypes if dtype.is_floating_point} == {torch.bfloat16}


@pytest.fixture
def with_variant(files: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder whose fp16 variant has weights of its own, all of them 0.5."""
    shutil.copytree(files / "sdxl", tmp_path / "both")
    for file in (tmp_path / "both").glob("*/*.safetensors"):
        halves = {name: torch.full_like(tensor, 0.5).half() for name, tensor in load_file(file).items()}
        save_file(halves, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    yield tmp_path / "both"


def test_the_variant_asked_for_is_the_one_loaded(models: Catalog, with_variant: Path) -> None:
    entry = replace(models.resolve("sdxl-folder"), source=str(with_variant))
    assert (load(entry).unet.conv_in.weight != 0.5).all()
    assert (load(replace(entry, variant="fp16")).unet.conv_in.weight == 0.5).all()


def test_a_hub_id_in_the_cache_is_loaded_without_a_connection(
    models: Catalog, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = tmp_path / "models--some--model"
    shutil.copytree(files / "sdxl", repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    for module in (huggingface_hub.constants, huggingface_hub._snapshot_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_CACHE", str(tmp_path), raising=False)
    entry = replace(models.resolve("sdxl-folder"), source="some/model")
    expected = weights(load(models.resolve("sdxl-folder")))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(load(entry)).items())

    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.rmtree(snapshot / "vae")  # as it is where the hub's own VAE was never wanted
    fetched = []

    def fetch(repository: str, name: str, *, revision: str | None, local_files_only: bool) -> str:
        assert revision == snapshot.name, "another commit's configuration would land in another folder"
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        fetched.append(name)
        (snapshot / "vae").mkdir(exist_ok=True)
        return str(shutil.copy(files / "sdxl" / name, snapshot / name))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    entry = replace(entry, vae=str(files / "vae.safetensors"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(load(entry)).items())
    assert fetched == ["vae/config.json"]


def test_a_hub_id_that_cannot_be_had_is_a_checkpoint_error(models: Catalog) -> None:
    with pytest.raises(CheckpointError, match="'sdxl-folder' cannot be loaded: .* check the id's spelling"):
        load(replace(models.resolve("sdxl-folder"), source="some-body/no-such-model"))


def test_a_broken_checkpoint_leaves_the_models_before_it_working(models: Catalog, tmp_path: Path, files: Path) -> None:
    engine = Engine(pick_device("cpu"))
    good = models.resolve("sdxl-folder")
    before = picture(engine, good)
    shutil.copytree(files / "sdxl", tmp_path / "bad")
    file = tmp_path / "bad" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        engine.load(replace(good, name="bad", source=str(tmp_path / "bad")))
    assert picture(engine, good).tobytes() == before.tobytes()
    assert [name_of(identity) for identity in engine.state.resident] == ["sdxl-folder"]


@pytest.mark.parametrize("name", ["sdxl-folder", "sdxl", "sd3-folder", "sd3"])
def test_files_that_are_overwritten_leave_a_loaded_model_as_it_is(models: Catalog, tmp_path: Path, name: str) -> None:
    entry = models.resolve(name)
    assert entry.local is not None
    place = tmp_path / entry.local.name
    shutil.copytree(entry.local, place) if entry.local.is_dir() else shutil.copyfile(entry.local, place)
    pipeline = load(replace(entry, source=str(place)))
    before = {key: tensor.clone() for key, tensor in weights(pipeline).items()}
    for file in [place] if place.is_file() else place.rglob("*.safetensors"):
        file.write_bytes(b"\xff" * 100)  # as a copy in progress is: shorter, and not the same
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(pipeline).items())


def test_a_configuration_that_is_not_the_networks_is_refused(models: Catalog, files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "sdxl", tmp_path / "other")
    config = tmp_path / "other" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [32, 64]}))
    with pytest.raises(CheckpointError):
        load(replace(models.resolve("sdxl-folder"), source=str(tmp_path / "other")))
