"""Leaving guidance out of the last steps: equal to diffusers' parts in a loop written by hand, alone and in a crowd."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline

from pipelines.catalog import Catalog, ModelEntry
from pipelines.engine import Engine
from pipelines.request import ImageRequest, Wishes, settle
from pipelines.samplers import SamplerChoice, build
from tests.test_founding import TOLERANCE, alone, begin, step

MODELS = ("tiny-sdxl", "tiny-sd3")


def by_hand(checkpoints: Path, entry: ModelEntry, request: ImageRequest, guided_steps: int) -> torch.Tensor:
    """The loop of the stock pipelines, with the unconditional row for so many steps."""
    predict, channels = {"sdxl": sdxl, "sd3": sd3}[entry.family](checkpoints / entry.family, request)
    config = json.loads((checkpoints / entry.family / "scheduler" / "scheduler_config.json").read_text())
    sampler = build(SamplerChoice(request.sampler, request.schedule), entry.prediction, config, request.seed)
    sampler.set_timesteps(request.steps)
    generator = torch.Generator().manual_seed(request.seed)
    latents = torch.randn((1, channels, request.height // 2, request.width // 2), generator=generator)
    latents = latents * getattr(sampler, "init_noise_sigma", 1.0)
    for number, timestep in enumerate(sampler.timesteps):
        scaled = sampler.scale_model_input(latents, timestep) if hasattr(sampler, "scale_model_input") else latents
        if number < guided_steps:
            unconditional, conditional = predict(torch.cat([scaled] * 2), timestep).chunk(2)
            prediction = unconditional + request.guidance_scale * (conditional - unconditional)
        else:
            prediction = predict(scaled, timestep)
        latents = sampler.step(prediction, timestep, latents, return_dict=False, generator=generator)[0]
    return latents


def sdxl(folder: Path, request: ImageRequest) -> tuple[Callable[[torch.Tensor, Any], torch.Tensor], int]:
    """SDXL's UNet for two rows or one, and how many channels its latents have."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    text, negative, pooled, negative_pooled = pipeline.encode_prompt(request.prompt)
    texts, pools = torch.cat([negative, text]), torch.cat([negative_pooled, pooled])
    sizes = torch.tensor([[request.height, request.width, 0, 0, request.height, request.width]] * 2).float()

    def predict(latents: torch.Tensor, timestep: Any) -> torch.Tensor:
        rows = len(latents)
        conditions = {"text_embeds": pools[-rows:], "time_ids": sizes[-rows:]}
        output: torch.Tensor = pipeline.unet(
            latents, timestep, encoder_hidden_states=texts[-rows:], added_cond_kwargs=conditions, return_dict=False
        )[0]
        return output

    return predict, pipeline.unet.config.in_channels


def sd3(folder: Path, request: ImageRequest) -> tuple[Callable[[torch.Tensor, Any], torch.Tensor], int]:
    """SD3's transformer for two rows or one, and how many channels its latents have."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    text, negative, pooled, negative_pooled = pipeline.encode_prompt(
        request.prompt, request.prompt, request.prompt, max_sequence_length=16
    )
    texts, pools = torch.cat([negative, text]), torch.cat([negative_pooled, pooled])

    def predict(latents: torch.Tensor, timestep: Any) -> torch.Tensor:
        rows = len(latents)
        output: torch.Tensor = pipeline.transformer(
            latents,
            encoder_hidden_states=texts[-rows:],
            pooled_projections=pools[-rows:],
            timestep=timestep.expand(rows),
            return_dict=False,
        )[0]
        return output

    return predict, pipeline.transformer.config.in_channels


@pytest.mark.parametrize(("share", "guided_steps"), [(0.25, 6), (0.5, 4), (1.0, 0)])
@pytest.mark.parametrize("model", MODELS)
def test_the_last_steps_go_without_guidance(
    engine: Engine, catalog: Catalog, checkpoints: Path, model: str, share: float, guided_steps: int
) -> None:
    entry = catalog.resolve(model)
    request = settle(Wishes("a hat", steps=8, guidance_scale=6.0, skip_guidance=share), entry, seed=4)
    with torch.inference_mode():
        expected = by_hand(checkpoints, entry, request, guided_steps)
        whole = by_hand(checkpoints, entry, request, 8)
    made = alone(engine, entry, request)
    assert torch.equal(made, expected)
    assert not torch.equal(made, whole)


@pytest.mark.parametrize("model", MODELS)
def test_rows_leave_a_crowd_when_guidance_ends(engine: Engine, catalog: Catalog, model: str) -> None:
    entry = catalog.resolve(model)
    shares = (0.0, 0.5, 0.75, 1.0)
    requests = [
        settle(Wishes("a hat", steps=4, guidance_scale=5.0, skip_guidance=share), entry, seed)
        for seed, share in enumerate(shares)
    ]
    images = begin(engine, entry, requests)
    rows = []
    while not images[0].finished:
        rows.append([image.rows for image in images])
        step(engine, entry, images)
    assert rows == [[2, 2, 2, 1], [2, 2, 1, 1], [2, 1, 1, 1], [2, 1, 1, 1]]
    for image, request in zip(images, requests, strict=True):
        expected = alone(engine, entry, request)
        assert (image.latents - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_a_sampler_that_asks_twice_a_step_ends_its_guidance_within_that_step(engine: Engine, catalog: Catalog) -> None:
    entry = catalog.resolve("tiny-sdxl")
    request = settle(Wishes("a hat", steps=4, sampler="Heun", skip_guidance=0.5), entry, 0)
    (image,) = begin(engine, entry, [request])
    seen = []
    while not image.finished:
        seen.append((image.step, image.rows))
        step(engine, entry, [image])
    assert {rows for done, rows in seen if done < 2} == {2}
    assert {rows for done, rows in seen if done >= 2} == {1}
