"""The engine's isolation: one image's NaN, error or lack of memory is its own, and a retry changes no picture."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.catalog import Catalog, ModelEntry
from pipelines.denoising import Denoising
from pipelines.device import is_out_of_memory, pick_device
from pipelines.engine import Engine
from pipelines.errors import (
    DeviceError,
    ImageFailed,
    InvalidRequest,
    NotANumber,
)
from pipelines.family import Family
from pipelines.prompts import EmbeddingCache
from pipelines.request import Wishes, settle
from pipelines.samplers import Prediction, SamplerChoice, build, samplers_for, set_timesteps

MODELS = ("tiny-sdxl", "tiny-sd3", "tiny-sd3-t5")


@pytest.fixture(params=["tiny-sdxl", "tiny-sd3"])
def entry(request: pytest.FixtureRequest, catalog: Catalog, engine: Engine) -> ModelEntry:
    found = catalog.resolve(request.param)
    engine.load(found)
    return found


def begin(engine: Engine, entry: ModelEntry, count: int = 4, **wishes: Any) -> list[Denoising]:
    requests = [settle(Wishes(f"hat {seed}", steps=2, **wishes), entry, seed) for seed in range(count)]
    begun = engine.begin(entry, requests, engine.encode(entry, requests))
    return [image for image in begun if isinstance(image, Denoising)]


def patch_predict(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, entry: ModelEntry, before: Callable[[Sequence[Denoising]], None]
) -> None:
    """Have something happen before every real forward pass."""
    family = engine.family(entry)
    predict = family.predict

    def patched(batch: Sequence[Denoising]) -> list[torch.Tensor]:
        before(batch)
        return predict(batch)

    monkeypatch.setattr(family, "predict", patched)


def test_an_image_that_raises_in_the_forward_fails_alone(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, entry: ModelEntry
) -> None:
    batch = begin(engine, entry)
    poison = batch[2]

    def raise_for_poison(images: Sequence[Denoising]) -> None:
        if poison in images:
            raise RuntimeError("planted")

    patch_predict(monkeypatch, engine, entry, raise_for_poison)
    outcomes = engine.step(entry, batch)
    assert [outcome is None for outcome in outcomes] == [True, True, False, True]
    assert isinstance(outcomes[2], ImageFailed)
    assert [image.evaluation for image in batch] == [1, 1, 0, 1]


def test_an_image_of_nan_fails_alone_and_is_never_decoded(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, entry: ModelEntry
) -> None:
    batch = begin(engine, entry, 4)
    expected = engine.finish(entry, [batch[0], batch[2]])
    batch[1].latents = torch.full_like(batch[1].latents, torch.nan)
    batch[3].latents = batch[3].latents.clone()
    batch[3].latents[0, 0, 0, 0] = torch.inf
    family, sizes = engine.family(entry), list[int]()
    decode = family.decode
    monkeypatch.setattr(family, "decode", lambda latents: (sizes.append(len(latents)), decode(latents))[1])
    outcomes = engine.finish(entry, batch)
    assert isinstance(outcomes[1], NotANumber) and isinstance(outcomes[3], NotANumber)
    assert [picture.tobytes() for picture in (outcomes[0], outcomes[2]) if isinstance(picture, Image.Image)] == [
        picture.tobytes() for picture in expected if isinstance(picture, Image.Image)
    ]
    assert sizes == [2]
    assert all(isinstance(outcome, NotANumber) for outcome in engine.finish(entry, [batch[1], batch[3]]))
    assert sizes == [2]


@torch.inference_mode()
def keep(family: Family, dtype: torch.dtype) -> None:
    """Have the VAE in a dtype, as `place` would on a GPU."""
    family.vae.to(dtype)


def overflowing_vae(monkeypatch: pytest.MonkeyPatch, family: Family, rows: Sequence[int], always: bool = False) -> None:
    """A VAE in half precision whose network gives infinity there, and in float32 what it should."""
    keep(family, torch.bfloat16)
    network = family.vae.decoder.forward

    def decoder(sample: torch.Tensor, *args: Any) -> torch.Tensor:
        pixels: torch.Tensor = network(sample, *args)
        if always or sample.dtype != torch.float32:
            pixels[list(rows), 0, 0, 0] = torch.inf
        return pixels

    monkeypatch.setattr(family.vae.decoder, "forward", decoder)


@pytest.fixture
def own(catalog: Catalog) -> tuple[Engine, ModelEntry]:
    """A model in an engine of its own, whose VAE may be spoilt."""
    engine, entry = Engine(pick_device("cpu")), catalog.resolve("tiny-sdxl")
    engine.load(entry)
    return engine, entry


def test_what_overflows_in_half_precision_is_decoded_again_in_float32(
    monkeypatch: pytest.MonkeyPatch, own: tuple[Engine, ModelEntry]
) -> None:
    engine, entry = own
    family = engine.family(entry)
    batch = begin(engine, entry, 3)
    batch[0].latents = torch.full_like(batch[0].latents, torch.nan)
    keep(family, torch.bfloat16)
    half = [picture.tobytes() for picture in engine.finish(entry, batch) if isinstance(picture, Image.Image)]
    keep(family, torch.float32)
    (whole,) = engine.finish(entry, [batch[2]])
    overflowing_vae(monkeypatch, family, [1])
    outcomes = engine.finish(entry, batch)
    assert isinstance(outcomes[0], NotANumber)
    assert isinstance(outcomes[1], Image.Image) and outcomes[1].tobytes() == half[0], "it was sound as it was"
    assert isinstance(outcomes[2], Image.Image) and isinstance(whole, Image.Image)
    assert outcomes[2].tobytes() == whole.tobytes() != half[1]
    assert family.vae.dtype == torch.bfloat16, "the float32 was for that call alone"


def test_pixels_that_are_not_finite_even_in_float32_fail_their_image_alone(
    monkeypatch: pytest.MonkeyPatch, own: tuple[Engine, ModelEntry]
) -> None:
    engine, entry = own
    overflowing_vae(monkeypatch, engine.family(entry), [0], always=True)
    outcomes = engine.finish(entry, begin(engine, entry, 2))
    assert isinstance(outcomes[0], NotANumber)
    assert isinstance(outcomes[1], Image.Image)


def test_a_sampler_that_fails_takes_nobody_with_it(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, entry: ModelEntry
) -> None:
    batch = begin(engine, entry, 3)

    def explode(*_: Any, **__: Any) -> Any:
        raise ValueError("planted")

    monkeypatch.setattr(batch[0].sampler, "step", explode)
    outcomes = engine.step(entry, batch)
    assert isinstance(outcomes[0], ImageFailed)
    assert outcomes[1:] == [None, None]


def test_a_size_beyond_the_table_of_positions_is_refused_for_that_image(engine: Engine, catalog: Catalog) -> None:
    entry = catalog.resolve("tiny-sd3")
    engine.load(entry)
    requests = [settle(Wishes("hat", width=width), entry, 0) for width in (32, 128)]
    outcomes = engine.begin(entry, requests, engine.encode(entry, requests))
    assert isinstance(outcomes[0], Denoising)
    assert isinstance(outcomes[1], Denoising), "128 pixels are 32 positions, the last that fit"
    too_wide = [replace(requests[0], width=160)]
    assert isinstance(engine.begin(entry, too_wide, engine.encode(entry, too_wide))[0], InvalidRequest)


def test_lack_of_memory_is_known_by_whatever_it_raises() -> None:
    with pytest.raises(RuntimeError) as lacking:
        torch.empty(2**55)
    assert is_out_of_memory(lacking.value)
    assert is_out_of_memory(torch.OutOfMemoryError("planted"))
    for said in (
        "Invalid buffer size: 36.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ):
        assert is_out_of_memory(RuntimeError(said)), said
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
    assert not is_out_of_memory(RuntimeError("a shape is wrong"))


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_goes_all_the_way_to_a_picture(catalog: Catalog, name: str) -> None:
    engine = Engine(pick_device("cpu"))
    entry = replace(catalog.resolve(name), dtype="bfloat16")
    engine.load(entry)
    family = engine.family(entry)
    assert {parameter.dtype for module in family.modules for parameter in module.parameters()} == {torch.bfloat16}
    batch = begin(engine, entry, 2, sampler="Euler")
    while not batch[0].finished:
        assert engine.step(entry, batch) == [None, None]
    assert batch[0].latents.dtype == torch.bfloat16
    assert all(isinstance(picture, Image.Image) for picture in engine.finish(entry, batch))


@pytest.mark.parametrize(
    ("prediction", "sampler"), [(kind, name) for kind in Prediction for name in samplers_for(kind)]
)
def test_no_sampler_leaves_a_tensor_on_another_device(prediction: Prediction, sampler: str) -> None:
    """A device without data stands for a GPU: mixing tensors of it with the CPU's raises just as there."""
    choice = SamplerChoice(sampler, "automatic")
    built = build(choice, prediction, {"num_train_timesteps": 1000}, seed=1)
    set_timesteps(built, choice, prediction, 4, torch.device("meta"))
    if sampler == "DPM++ SDE":
        return  # its Brownian tree reads values, which a device without data has none of
    if (prediction, sampler) == (Prediction.FLOW, "Euler a"):
        assert built.sigmas.device.type == "meta", "it multiplies latents by sigmas, and reads values of them too"
        return
    latents = torch.zeros(1, 4, 8, 8, device="meta", dtype=torch.bfloat16)
    for timestep in built.timesteps:
        scaled = built.scale_model_input(latents, timestep) if hasattr(built, "scale_model_input") else latents
        latents = built.step(scaled, timestep, latents, return_dict=False)[0].to(torch.bfloat16)
    assert latents.device.type == "meta"


def test_a_device_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="there is"):
        pick_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="cuda:0"):
        pick_device("cuda:9")


def test_an_embedding_is_computed_once_and_the_oldest_is_forgotten_first() -> None:
    asked: list[list[str]] = []

    def encode(keys: list[str]) -> list[str]:
        asked.append(keys)
        return [key.upper() for key in keys]

    cache: EmbeddingCache[str, str] = EmbeddingCache(capacity=2)
    assert cache.get(["a", "b", "a"], encode) == ["A", "B", "A"]
    assert cache.get(["b", "c"], encode) == ["B", "C"]
    assert cache.get(["a"], encode) == ["A"]
    assert asked == [["a", "b"], ["c"], ["a"]]


def test_a_prompt_beyond_the_encoders_is_not_cut_silently(engine: Engine, catalog: Catalog) -> None:
    for name, read in (("tiny-sdxl", 75), ("tiny-sd3", 75), ("tiny-sd3-t5", 15)):
        entry = catalog.resolve(name)
        engine.load(entry)
        request = settle(Wishes("x" * 100, negative_prompt="x" * 90), entry, 0)
        (text,) = engine.encode(entry, [request])
        assert not isinstance(text, Exception)
        assert text.prompt.dropped == text.prompt.tokens - read > 0
        assert 0 < text.negative_prompt.dropped < text.prompt.dropped
