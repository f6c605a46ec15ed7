"""The founding test: an image made in a crowd equals the image made alone equals plain diffusers."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline

from pipelines.catalog import Catalog, ModelEntry
from pipelines.denoising import Denoising
from pipelines.engine import Engine
from pipelines.request import ImageRequest, Wishes, settle
from pipelines.samplers import SAMPLERS, Prediction, SamplerChoice, build, samplers_for

MODELS = ("tiny-sdxl", "tiny-sd3", "tiny-sd3-t5")
TOLERANCE = 2e-4
"""Largest difference between crowded and alone, as a share of the latents' largest magnitude, in float32.

Kernels add in another order for another batch size; each step carries on what the step before it left.
"""

CASES = [
    (model, sampler)
    for model, prediction in zip(MODELS, (Prediction.DIFFUSION, Prediction.FLOW, Prediction.FLOW), strict=True)
    for sampler in samplers_for(prediction)
]


@pytest.fixture(scope="module")
def plain(checkpoints: Path) -> dict[str, Any]:
    """The stock pipelines over the same checkpoints."""
    without_t5 = {"text_encoder_3": None, "tokenizer_3": None}
    pipelines = {
        "tiny-sdxl": StableDiffusionXLPipeline.from_pretrained(checkpoints / "sdxl"),
        "tiny-sd3": StableDiffusion3Pipeline.from_pretrained(checkpoints / "sd3", **without_t5),
        "tiny-sd3-t5": StableDiffusion3Pipeline.from_pretrained(checkpoints / "sd3-t5"),
    }
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


def begin(engine: Engine, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Denoising]:
    engine.load(entry)
    engine.family(entry).cache.clear()  # else a prompt would keep the bits it got among others
    begun = engine.begin(entry, requests, engine.encode(entry, requests))
    for image in begun:
        assert isinstance(image, Denoising), image
    return [image for image in begun if isinstance(image, Denoising)]


def step(engine: Engine, entry: ModelEntry, batch: Sequence[Denoising]) -> None:
    assert engine.step(entry, batch) == [None] * len(batch)


def alone(engine: Engine, entry: ModelEntry, request: ImageRequest) -> torch.Tensor:
    (image,) = begin(engine, entry, [request])
    while not image.finished:
        step(engine, entry, [image])
    return image.latents


def by_diffusers(pipeline: Any, entry: ModelEntry, request: ImageRequest, config: dict[str, Any]) -> torch.Tensor:
    """The same request through the stock pipeline's own loop."""
    pipeline.scheduler = build(SamplerChoice(request.sampler, request.schedule), entry.prediction, config, request.seed)
    generator = torch.Generator().manual_seed(request.seed)
    extra: dict[str, Any] = {}
    if entry.prediction is Prediction.FLOW:
        extra["max_sequence_length"] = entry.max_sequence_length
        if "generator" in pipeline.scheduler.step.__code__.co_varnames:
            # SD3's pipeline does not hand its generator on, so stochastic samplers would draw from nowhere.
            pipeline.scheduler.step = partial(pipeline.scheduler.step, generator=generator)
    elif request.sampler == "TCD":
        extra["eta"] = 0.3  # the scheduler's own default, which the pipeline overrides with 0
    latents: torch.Tensor = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        clip_skip=request.clip_skip,
        generator=generator,
        output_type="latent",
        **extra,
    ).images
    return latents


@pytest.mark.parametrize(("model", "sampler"), CASES)
def test_alone_equals_plain_diffusers_bit_for_bit(
    engine: Engine, catalog: Catalog, plain: dict[str, Any], model: str, sampler: str
) -> None:
    entry = catalog.resolve(model)
    method = SAMPLERS[sampler].method(entry.prediction)
    assert method is not None
    engine.load(entry)
    config = dict(engine.family(entry).scheduler_config)
    for number, schedule in enumerate(sorted(method.schedules)):
        wishes = Wishes(
            f"a hat number {number}",
            negative_prompt=(None, "", "blurred")[number % 3],
            width=(32, 48)[number % 2],
            steps=(5, 6)[number % 2],
            guidance_scale=(1.0, 4.5, 7.0)[number % 3],
            clip_skip=(None, 1)[number % 2],
            sampler=sampler,
            schedule=schedule,
        )
        request = settle(wishes, entry, seed=number)
        made = alone(engine, entry, request)
        assert torch.isfinite(made).all()
        assert torch.equal(made, by_diffusers(plain[model], entry, request, config)), schedule


@pytest.mark.parametrize("model", MODELS)
def test_a_crowd_of_every_sampler_joining_and_leaving_equals_each_alone(
    engine: Engine, catalog: Catalog, model: str
) -> None:
    entry = catalog.resolve(model)
    engine.load(entry)
    requests = [
        settle(
            Wishes(
                f"picture {number}",
                negative_prompt=(None, "grey")[number % 2],
                steps=3 + number % 4,
                guidance_scale=(1.0, 3.0, 7.5)[number % 3],
                sampler=sampler,
            ),
            entry,
            seed=100 + number,
        )
        for number, sampler in enumerate(samplers_for(entry.prediction))
    ]
    arriving = iter(begin(engine, entry, requests))
    everyone: list[Denoising] = []
    riding: list[Denoising] = []
    sizes = set()
    while True:
        # Two more board before every step while any are left; those who have arrived get off.
        newcomers = [image for image in (next(arriving, None), next(arriving, None)) if image is not None]
        everyone += newcomers
        riding = [image for image in riding + newcomers if not image.finished]
        if not riding:
            break
        step(engine, entry, riding)
        sizes.add(sum(image.rows for image in riding))
    assert len(everyone) == len(requests)
    assert len(sizes) > 3, "the crowd never changed, so nothing was shown"
    for image, request in zip(everyone, requests, strict=True):
        expected = alone(engine, entry, request)
        difference = (image.latents - expected).abs().max()
        assert difference <= TOLERANCE * expected.abs().max(), f"{request.sampler}: {difference}"


@pytest.mark.parametrize("model", MODELS)
def test_the_same_batch_composition_gives_the_same_bits(engine: Engine, catalog: Catalog, model: str) -> None:
    entry = catalog.resolve(model)
    requests = [
        settle(Wishes("a boat", steps=3, guidance_scale=scale, sampler=sampler), entry, seed=7)
        for scale, sampler in ((1.0, "Euler a"), (4.0, "Euler"), (6.0, "DPM++ 2M SDE"))
    ]

    def together() -> list[torch.Tensor]:
        batch = begin(engine, entry, requests)
        for _ in range(3):
            step(engine, entry, batch)
        return [image.latents for image in batch]

    for first, second in zip(together(), together(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("model", MODELS)
def test_decoded_pictures_equal_plain_diffusers(
    engine: Engine, catalog: Catalog, plain: dict[str, Any], model: str
) -> None:
    import numpy as np

    entry = catalog.resolve(model)
    request = settle(Wishes("a tree", steps=3), entry, seed=3)
    (image,) = begin(engine, entry, [request])
    while not image.finished:
        step(engine, entry, [image])
    picture = engine.finish(entry, [image])[0]
    assert not isinstance(picture, Exception)
    config = dict(engine.family(entry).scheduler_config)
    plain[model].scheduler = build(SamplerChoice("Euler", "automatic"), entry.prediction, config, 3)
    extra = {"max_sequence_length": 16} if entry.prediction is Prediction.FLOW else {}
    expected = plain[model](
        "a tree",
        width=32,
        height=32,
        num_inference_steps=3,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(3),
        **extra,
    ).images[0]
    assert np.array_equal(np.asarray(picture), np.asarray(expected))
