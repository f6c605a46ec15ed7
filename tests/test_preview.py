"""Previews: they show what is coming, at every step of every sampler, and cost no picture a bit."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from pipelines.catalog import Catalog, ModelEntry, Offload
from pipelines.denoising import Answer, Denoising
from pipelines.device import pick_device
from pipelines.engine import Engine
from pipelines.errors import CatalogError, CheckpointError, PreviewFailed
from pipelines.families import families, family_facts
from pipelines.family import Family
from pipelines.loading import load_preview_decoder
from pipelines.models_toml import DEMO_CATALOG, load_catalog
from pipelines.preview import MAX_SIDE, DecoderPreviewer, LinearPreviewer, draw, implied_latents, synthetic_pictures
from pipelines.request import Wishes, settle
from pipelines.samplers import Prediction, samplers_for
from pipelines.sources import inspect_entry

PSNR = 17.0
"""In dB, of a linear preview of the final latents against the demo's picture scaled down; it was 18 to 20.

No matrix of this size does better than 20 there: that is what one fitted to these very pictures reaches.
"""

CASES = [
    (model, sampler)
    for model, prediction in (("tiny-sdxl", Prediction.DIFFUSION), ("tiny-sd3", Prediction.FLOW))
    for sampler in samplers_for(prediction)
]


# What a network may predict. Few of diffusers' classes take "sample".
KINDS = [
    (model, sampler, kind)
    for model, sampler in CASES
    for kind in (["velocity"] if model == "tiny-sd3" else ["epsilon", "v_prediction"])
] + [("tiny-sdxl", sampler, "sample") for sampler in ("Euler", "DDIM", "DPM++ 2M")]


def begin(engine: Engine, entry: ModelEntry, wishes: Sequence[Wishes]) -> list[Denoising]:
    engine.load(entry)
    requests = [settle(wish, entry, seed) for seed, wish in enumerate(wishes)]
    begun = engine.begin(entry, requests, engine.encode(entry, requests))
    return [image for image in begun if isinstance(image, Denoising)]


def preview(engine: Engine, entry: ModelEntry, batch: Sequence[Denoising]) -> list[Image.Image]:
    pictures = engine.preview(entry, batch)
    assert all(isinstance(picture, Image.Image) for picture in pictures), pictures
    return [picture for picture in pictures if isinstance(picture, Image.Image)]


def error(one: Image.Image, other: Image.Image) -> float:
    """The mean squared difference of two pictures whose values are in 0..1."""
    small = other.resize(one.size, Image.Resampling.BOX)
    return float(((np.asarray(one) / 255 - np.asarray(small) / 255) ** 2).mean())


@pytest.fixture(scope="module")
def demo() -> Catalog:
    return load_catalog(DEMO_CATALOG, family_facts())


@pytest.mark.parametrize("name", ["demo-sdxl", "demo-sd3"])
def test_previews_come_closer_to_the_picture_and_end_like_it(demo: Catalog, engine: Engine, name: str) -> None:
    entry = demo.resolve(name)
    scenes = ("mountains at noon", "a lake at sunset with a boat", "hills at midnight with a moon", "a forest at dawn")
    batch = begin(engine, entry, [Wishes(scene, steps=12) for scene in scenes])
    shown = []
    while not batch[0].finished:
        assert engine.step(entry, batch) == [None] * len(batch)
        shown.append(preview(engine, entry, batch))
    pictures = engine.finish(entry, batch)
    errors = []
    for drawn in shown:
        assert {picture.size for picture in drawn} == {(32, 32)}, "one pixel a latent"
        errors.append(np.mean([error(small, big) for small, big in zip(drawn, pictures, strict=True)]))
    assert errors[0] > 2 * errors[3] > 2 * 0.9 * errors[6] > 2 * 0.8 * errors[-1], errors
    for small, big in zip(shown[-1], pictures, strict=True):
        assert -10 * np.log10(error(small, big)) >= PSNR
    for small, big in zip(shown[6], pictures, strict=True):
        strangers = [error(small, other) for other in pictures if other is not big]
        assert error(small, big) < min(strangers), "half-way a preview is known for its own picture"


@pytest.mark.parametrize(("model", "sampler"), CASES)
def test_every_step_of_every_sampler_has_a_preview_and_no_picture_changes(
    engine: Engine, catalog: Catalog, model: str, sampler: str
) -> None:
    entry = catalog.resolve(model)
    wishes = [Wishes("a hat", steps=5, sampler=sampler, guidance_scale=scale) for scale in (1.0, 4.0)]
    watched, alone = begin(engine, entry, wishes), begin(engine, entry, wishes)
    assert all(picture.size == (16, 16) for picture in preview(engine, entry, watched)), "its noise, to begin with"
    while not watched[0].finished:
        for batch in (watched, alone):
            assert engine.step(entry, batch) == [None, None]
        assert all(picture.size == (16, 16) for picture in preview(engine, entry, watched))
        assert preview(engine, entry, watched)[0].tobytes() == preview(engine, entry, watched)[0].tobytes()
    for image, other in zip(watched, alone, strict=True):
        assert torch.equal(image.latents, other.latents)


@pytest.mark.parametrize(("model", "sampler", "kind"), KINDS)
def test_the_clean_latents_are_those_that_the_sampler_itself_finds(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, catalog: Catalog, model: str, sampler: str, kind: str
) -> None:
    """Where diffusers' class tells, at every step; where it doesn't, at the last, which ends with the clean latents."""
    entry = catalog.resolve(model)
    engine.load(entry)
    if kind != "velocity":
        monkeypatch.setitem(engine.family(entry).scheduler_config, "prediction_type", kind)  # type: ignore[arg-type]
    (image,) = begin(engine, entry, [Wishes("a hat", steps=6, sampler=sampler)])
    told: list[torch.Tensor | None] = []
    monkeypatch.setattr(image.sampler, "step", _telling(image, told))
    while not image.finished:
        assert engine.step(entry, [image]) == [None]
        assert image.answer is not None
        found = implied_latents(image.answer, image.sampler, entry.prediction)
        expected = image.latents if told[-1] is None and image.finished else told[-1]
        if expected is not None:
            off = float((found - expected).abs().max() / expected.abs().max())
            assert off <= _tolerance(sampler), off


@pytest.mark.parametrize(
    ("sampler", "options", "timestep", "expected"),
    [
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, 999.0, -3.0),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, 999.0, 2.0),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_type": "continuous"}, -0.5, 2.0),
        ("EulerDiscreteScheduler", {"prediction_type": "sample"}, 2000.5, 3.0),
    ],
)
def test_where_nothing_is_implied_the_latents_themselves_are_shown(
    sampler: str, options: dict[str, Any], timestep: float, expected: float
) -> None:
    """At pure noise a velocity is all there is to go by; noise taken off it leaves nothing, so it is shown as it is."""
    built = getattr(diffusers, sampler)(**options)
    answer = Answer(torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 3.0), torch.tensor(timestep))
    found = implied_latents(answer, built, Prediction.DIFFUSION)
    assert torch.allclose(found, torch.full_like(found, expected))


def _tolerance(sampler: str) -> float:
    if sampler in ("LCM", "TCD", "PNDM"):
        return 0.1  # their last step leaves a little of the noise that there is at timestep 0 or 1
    return 0.02 if sampler.startswith(("DPM++", "DEIS", "UniPC", "SA")) else 1e-3  # the former round timesteps


def _telling(image: Denoising, told: list[torch.Tensor | None]) -> Callable[..., Any]:
    """The sampler's step, which also notes the clean latents of its own reckoning, or None where it has none."""
    step = image.sampler.step

    def telling(*args: Any, generator: torch.Generator | None = None, **kwargs: Any) -> Any:
        drawing = {} if generator is None else {"generator": generator}
        stepped = step(*args, **drawing, **kwargs)
        name = type(image.sampler).__name__
        if len(stepped) == 2 and not name.startswith(("LCM", "TCD")):
            told.append(stepped[1])
        elif name.startswith("DEIS"):  # which keeps the noise it found
            level = image.sampler.sigmas[image.sampler.step_index - 1]
            alpha, sigma = image.sampler._sigma_to_alpha_sigma_t(level)
            told.append((args[2] - sigma * image.sampler.model_outputs[-1]) / alpha)
        elif hasattr(image.sampler, "model_outputs"):
            told.append(image.sampler.model_outputs[-1])
        else:
            told.append(None)
        return stepped

    return telling


def test_an_image_of_nan_has_no_preview_and_its_neighbours_have(engine: Engine, catalog: Catalog) -> None:
    entry = catalog.resolve("tiny-sdxl")
    batch = begin(engine, entry, [Wishes("a hat", steps=4)] * 3)
    batch[1].latents = torch.full_like(batch[1].latents, torch.nan)
    assert engine.step(entry, batch) == [None] * 3
    outcomes = engine.preview(entry, batch)
    assert isinstance(outcomes[1], PreviewFailed)
    assert isinstance(outcomes[0], Image.Image) and isinstance(outcomes[2], Image.Image)


def test_a_preview_that_raises_fails_alone(monkeypatch: pytest.MonkeyPatch, engine: Engine, catalog: Catalog) -> None:
    entry = catalog.resolve("tiny-sd3")
    batch = begin(engine, entry, [Wishes("a hat", steps=2)] * 3)
    engine.step(entry, batch)
    monkeypatch.setattr(batch[0], "answer", "broken")
    outcomes = engine.preview(entry, batch)
    assert isinstance(outcomes[0], Exception)
    assert isinstance(outcomes[1], Image.Image) and isinstance(outcomes[2], Image.Image)
    assert engine.step(entry, batch) == [None] * 3, "the picture itself goes on"


def test_images_of_several_sizes_and_steps_share_one_call(engine: Engine, catalog: Catalog) -> None:
    entry = catalog.resolve("tiny-sd3")
    batch = begin(engine, entry, [Wishes("a hat", width=side, steps=3) for side in (32, 48, 64)])
    for image in batch[1:]:
        engine.step(entry, [image])
    together = preview(engine, entry, batch)
    assert [picture.size for picture in together] == [(16, 16), (24, 16), (32, 16)]
    for image, picture in zip(batch, together, strict=True):
        (alone,) = preview(engine, entry, [image])
        assert np.abs(np.asarray(alone, int) - np.asarray(picture, int)).max() <= 1


def test_no_preview_is_larger_than_it_may_be() -> None:
    previewer = LinearPreviewer(torch.ones(5, 3) / 10)
    sizes = [(600, 300), (256, 2), (1, 4000)]
    pictures = draw(previewer, [torch.zeros(1, 4, height, width) for height, width in sizes])
    assert [picture.size for picture in pictures if isinstance(picture, Image.Image)] == [
        (128, 256),
        (2, 256),
        (256, 1),
    ]
    assert MAX_SIDE == 256


@pytest.mark.parametrize("fault", ["raises", "nan"])
def test_a_vae_that_cannot_be_fitted_costs_the_previews_alone(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    entry = catalog.resolve("tiny-sdxl")

    def broken(self: Family, pixels: torch.Tensor) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("planted")
        return torch.full((8, 4, 12, 12), torch.nan)

    monkeypatch.setattr(families()["sdxl"], "latents_of", broken)
    engine = Engine(pick_device("cpu"))
    with caplog.at_level(logging.WARNING):
        batch = begin(engine, entry, [Wishes("a hat", steps=2)] * 2)
        assert len(caplog.records) == 1, "it is fitted when the model is loaded, not when somebody first looks"
        assert engine.step(entry, batch) == [None, None]
        assert all(isinstance(outcome, PreviewFailed) for outcome in engine.preview(entry, batch))
        engine.load(entry)
    assert [record.message.split(":")[0] for record in caplog.records] == ["no previews of model 'tiny-sdxl'"]


def test_a_fit_that_lacks_memory_makes_room_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    entry, idle = catalog.resolve("tiny-sdxl"), catalog.resolve("tiny-sd3")
    engine = Engine(pick_device("cpu"))
    engine.load(idle)
    latents_of, lacking = families()["sdxl"].latents_of, True

    def short(self: Family, pixels: torch.Tensor) -> torch.Tensor:
        if lacking or idle.identity in engine.state.resident:
            raise torch.OutOfMemoryError("planted")
        return latents_of(self, pixels)

    monkeypatch.setattr(families()["sdxl"], "latents_of", short)
    batch = begin(engine, entry, [Wishes("a hat", steps=2)] * 2)
    assert idle.identity in engine.state.resident, "nobody has looked yet: no model goes for that"
    outcomes = engine.preview(entry, batch)
    assert [str(one) for one in outcomes if isinstance(one, PreviewFailed)] == [
        "the device has no memory left for a preview now."
    ] * 2
    assert engine.step(entry, batch) == [None, None]
    engine.load(idle, busy={entry.identity})
    lacking = False
    assert len(preview(engine, entry, batch)) == 2
    assert engine.state.resident == (entry.identity,), "an idle model made room"
    assert not caplog.records, "memory may be there the next time, so nothing is turned off"


@pytest.mark.parametrize("moments", [False, True])
def test_what_a_family_encodes_is_scaled_as_it_decodes(
    monkeypatch: pytest.MonkeyPatch, demo: Catalog, engine: Engine, moments: bool
) -> None:
    pixels = synthetic_pictures(64)
    for name in ("demo-sdxl", "demo-sd3"):
        entry = demo.resolve(name)
        engine.load(entry)
        family = engine.family(entry)
        config = dict(family.vae.config)
        if moments:
            config |= {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [0.5, 1.5, 2.0, 0.8]}
        monkeypatch.setattr(family.vae, "_internal_dict", type(family.vae.config)(config))
        with torch.inference_mode():
            latents = family.latents_of(pixels)
            decoded = family.decode(latents)
            unscaled = family.vae.encode(pixels).latent_dist.mode()
            expected = family.vae.decode(unscaled).sample
        assert not torch.allclose(latents, unscaled, rtol=0.1), "the network's latents are scaled"
        assert (decoded - expected).abs().max() < 1e-4, name


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A tiny decoder of the real class."""
    torch.manual_seed(0)
    channels, blocks = (8, 8), (1, 1)
    AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    ).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_distilled_decoder_draws_the_previews(catalog: Catalog, decoder: Path) -> None:
    engine = Engine(pick_device("cpu"))
    entry = replace(catalog.resolve("tiny-sdxl"), preview=str(decoder))
    assert entry.identity != catalog.resolve("tiny-sdxl").identity, "the running model would keep its old previews"
    batch = begin(engine, entry, [Wishes("a hat", steps=2, width=width) for width in (32, 64)])
    for image in batch:
        engine.step(entry, [image])
    assert [picture.size for picture in preview(engine, entry, batch)] == [(32, 32), (64, 32)]
    whole = inspect_entry(entry, "StableDiffusionXLPipeline")
    without = inspect_entry(catalog.resolve("tiny-sdxl"), "StableDiffusionXLPipeline")
    assert whole is not None and without is not None and whole.files == without.files + 1


def test_a_decoder_is_read_with_its_model_and_goes_where_it_goes(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog, decoder: Path
) -> None:
    """Whoever places the model waits for neither a disk nor a hub, and the weights are counted and parked with it."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(decoder))
    entry = replace(catalog.resolve("tiny-sdxl"), preview="somebody/tiny", dtype="bfloat16")
    changes: list[torch.dtype] = []
    with monkeypatch.context() as watched:
        watched.setattr(torch, "set_default_dtype", changes.append)
        engine = Engine(replace(pick_device("cpu"), own_memory=True))
        family = engine.read(entry)
    assert changes == [], "it is the whole process's, and this may be another thread"
    plain = engine.read(replace(entry, preview="linear"))
    size = sum(weight.nbytes for weight in family.preview_decoder.state_dict().values())
    assert family.weight_bytes == plain.weight_bytes + size > plain.weight_bytes
    shutil.rmtree(decoder)
    engine.place(entry, family)
    assert engine.state.weight_bytes == {entry.identity: family.weight_bytes}
    (image,) = begin(engine, entry, [Wishes("a hat", steps=2)])
    (before,) = preview(engine, entry, [image])
    homes = {weight.data_ptr() for weight in family.preview_decoder.parameters()}
    with torch.inference_mode():
        family.park(pinned=False)
        assert homes.isdisjoint(weight.data_ptr() for weight in family.preview_decoder.parameters())
        family.place()
    assert preview(engine, entry, [image])[0].tobytes() == before.tobytes()
    family.device = torch.device("meta")  # which stands for a GPU: nothing else shows that weights go there
    family.place()
    assert {weight.device.type for weight in family.preview_decoder.parameters()} == {"meta"}


@pytest.mark.parametrize("offload", [Offload.MODEL, Offload.GROUP])
def test_a_decoder_stays_on_the_device_beside_networks_that_take_turns(
    catalog: Catalog, decoder: Path, offload: Offload
) -> None:
    engine = Engine(replace(pick_device("cpu"), own_memory=True))
    entry = replace(catalog.resolve("tiny-sdxl"), preview=str(decoder), offload=offload)
    (image,) = begin(engine, entry, [Wishes("a hat", steps=2)])
    assert engine.step(entry, [image]) == [None]
    family = engine.family(entry)
    assert family._turns is not None
    at_work = family._turns._at_work
    (before,) = preview(engine, entry, [image])
    assert family._turns._at_work is at_work, "a preview cost another network its turn"
    linear = engine.read(replace(entry, preview="linear"))
    size = sum(weight.nbytes for weight in family.preview_decoder.state_dict().values())
    assert engine.state.weight_bytes[entry.identity] == linear.device_bytes + size
    weights = list(family.preview_decoder.parameters())
    homes = {weight.data_ptr() for weight in weights}
    with torch.inference_mode():
        family.park(pinned=False)
        assert homes.isdisjoint(weight.data_ptr() for weight in weights), "it left the device with its model"
        family.place()
    assert preview(engine, entry, [image])[0].tobytes() == before.tobytes()
    family.device = torch.device("meta")  # which stands for a GPU: nothing else shows that weights go there
    family.place()
    assert {weight.device.type for weight in family.preview_decoder.parameters()} == {"meta"}


def test_a_decoder_never_decodes_a_large_picture(catalog: Catalog, decoder: Path) -> None:
    entry = replace(catalog.resolve("tiny-sdxl"), preview=str(decoder))
    tiny = load_preview_decoder(entry, 4, torch.float32)
    asked: list[tuple[int, ...]] = []
    tiny.decoder.register_forward_pre_hook(lambda _, given: asked.append(tuple(given[0].shape)))
    with torch.inference_mode():
        (picture,) = draw(DecoderPreviewer(tiny), [torch.zeros(1, 4, 512, 256)])
    assert isinstance(picture, Image.Image) and picture.size == (64, 128), "its VAE enlarges by 2"
    assert asked == [(1, 4, 64, 32)]


def _rename(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")


def _truncate(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def _enlarge(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace('"num_decoder_blocks": [\n    1,', '"num_decoder_blocks": [\n    2,')
    )


def _another_class(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("AutoencoderTiny", "AutoencoderKL"))


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (_rename, "is a pickle"),
    (_truncate, "truncated"),
    (_enlarge, "holds .* tensors"),
    (_another_class, "AutoencoderTiny"),
    (lambda folder: (folder / "model.py").write_text(""), "is code"),
    (lambda folder: (folder / "config.json").unlink(), "correct `preview`"),
]


@pytest.mark.parametrize(("spoil", "reason"), FAULTS)
def test_a_decoder_that_is_not_sound_is_refused_and_costs_the_previews_alone(
    catalog: Catalog, decoder: Path, spoil: Callable[[Path], object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    entry = replace(catalog.resolve("tiny-sdxl"), preview=str(decoder))
    spoil(decoder)
    with pytest.raises(CheckpointError, match=reason):
        load_preview_decoder(entry, 4, torch.float32)
    if spoil is not _enlarge:  # which only the network itself shows
        with pytest.raises(CheckpointError, match=reason):
            inspect_entry(entry, "StableDiffusionXLPipeline")
    engine = Engine(pick_device("cpu"))
    (image,) = begin(engine, entry, [Wishes("a hat", steps=2)])
    assert engine.step(entry, [image]) == [None]
    assert isinstance(engine.preview(entry, [image])[0], PreviewFailed)
    assert len(caplog.records) == 1 and "no previews" in caplog.text


def test_a_decoder_of_other_latents_is_refused(catalog: Catalog, decoder: Path) -> None:
    with pytest.raises(CheckpointError, match="of 4 channels, and those of model 'tiny-sdxl' have 16"):
        load_preview_decoder(replace(catalog.resolve("tiny-sdxl"), preview=str(decoder)), 16, torch.float32)


def test_a_decoder_of_the_hub_is_inspected_in_its_cache(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog, decoder: Path
) -> None:
    entry = replace(catalog.resolve("tiny-sdxl"), preview="somebody/tiny")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    assert inspect_entry(entry, "StableDiffusionXLPipeline") is None, "it is downloaded when the model is loaded"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(decoder / "config.json"))
    local = inspect_entry(replace(entry, preview=str(decoder)), "StableDiffusionXLPipeline")
    assert local is not None and inspect_entry(entry, "StableDiffusionXLPipeline") == local
    fetched: list[dict[str, Any]] = []

    def snapshot(repository: str, **wanted: Any) -> str:
        fetched.append(wanted)
        return str(decoder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert isinstance(load_preview_decoder(entry, 4, torch.float32), AutoencoderTiny)
    assert [wanted["local_files_only"] for wanted in fetched] == [True]
    assert fetched[0]["allow_patterns"] == ["config.json", "diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize(
    ("written", "expected"), [(None, "linear"), ("linear", "linear"), ("./taesd", "{}/taesd"), ("a/taesd", "a/taesd")]
)
def test_the_catalogue_names_the_previewer(tmp_path: Path, written: str | None, expected: str) -> None:
    key = "" if written is None else f'preview = "{written}"'
    (tmp_path / "models.toml").write_text(f'[models.a]\nfamily = "sdxl"\nsource = "./x"\n{key}\n')
    entry = load_catalog(tmp_path / "models.toml", family_facts()).resolve("a")
    assert entry.preview == expected.format(tmp_path)


@pytest.mark.parametrize("written", ["taesd.safetensors", "./tiny/taesd.pth", "", "no folder"])
def test_a_previewer_that_cannot_be_is_refused_by_name(tmp_path: Path, written: str) -> None:
    (tmp_path / "models.toml").write_text(f'[models.a]\nfamily = "sdxl"\nsource = "./x"\npreview = "{written}"\n')
    with pytest.raises(CatalogError, match=r"models\.a\.preview"):
        load_catalog(tmp_path / "models.toml", family_facts())
