"""The same pictures? Each sampler through Darkroom, alone and in a crowd, against diffusers' own pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log10
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from pipelines.catalog import ModelEntry
from pipelines.denoising import Denoising
from pipelines.engine import Engine
from pipelines.request import ImageRequest, Wishes, settle
from pipelines.samplers import samplers_for

from .models import Model, StockPipeline
from .report import Progress

CROWD_IMAGES = 8
"""As many images share a forward pass in the crowd: sixteen rows, all with guidance."""


@dataclass(frozen=True)
class Made:
    """One picture, and the latents it was decoded from."""

    latents: torch.Tensor
    picture: Image


def measure_parity(model: Model, steps: int | None, progress: Progress) -> dict[str, Any]:
    """Compare every sampler of a model.

    Args:
        steps: None takes the model's own.

    Raises:
        PipelineError: an image failed.
    """
    requests = _requests(model.entry, steps)
    everyone_alone = _in_groups(model, requests, 1)
    progress(f"{len(requests)} samplers, each alone, are done")
    crowd = _in_groups(model, requests, CROWD_IMAGES)
    progress(f"{len(requests)} samplers in crowds of {CROWD_IMAGES} are done")
    stock = StockPipeline(model)
    samplers = []
    for request, alone, crowded in zip(requests, everyone_alone, crowd, strict=True):
        expected = Made(stock.latents(request), stock.pictures([request])[0])
        differences = {"alone": compare(alone, expected), "crowd": compare(crowded, expected)}
        samplers.append({"sampler": request.sampler, "steps": request.steps} | differences)
        progress(f"{request.sampler}: {differences['crowd']['psnr']:.1f} dB in the crowd")
    return {"model": model.entry.name, "dtype": str(model.dtype).removeprefix("torch."), "samplers": samplers}


def _requests(entry: ModelEntry, steps: int | None) -> list[ImageRequest]:
    """One request for each sampler, with steps and guidance of its own, so that a crowd of them is a mixed one."""
    base = steps or entry.steps
    return [
        settle(
            Wishes(
                f"a sunset over mountains, number {number}",
                steps=base + number % 3,
                guidance_scale=(3.0, 5.0, 7.5)[number % 3],
                sampler=sampler,
            ),
            entry,
            seed=number,
        )
        for number, sampler in enumerate(samplers_for(entry.prediction))
    ]


def _in_groups(model: Model, requests: Sequence[ImageRequest], size: int) -> list[Made]:
    """Make all pictures, so many at a time, on a fresh engine: one that has met a prompt in a crowd keeps its
    embedding, whose last bits are those of that crowd.
    """
    engine = Engine(model.device)
    engine.load(model.entry)
    groups = [requests[start : start + size] for start in range(0, len(requests), size)]
    return [made for group in groups for made in _together(engine, model.entry, group)]


def _together(engine: Engine, entry: ModelEntry, requests: Sequence[ImageRequest]) -> list[Made]:
    """Denoise images side by side until each has arrived; whoever is done leaves."""
    images = [_whole(image) for image in engine.begin(entry, requests, engine.encode(entry, requests))]
    while riding := [image for image in images if not image.finished]:
        for failure in engine.step(entry, riding):
            if failure is not None:
                raise failure
    return [_made(engine, entry, image) for image in images]


def _made(engine: Engine, entry: ModelEntry, image: Denoising) -> Made:
    picture = engine.finish(entry, [image])[0]
    if isinstance(picture, Exception):
        raise picture
    return Made(image.latents, picture)


def _whole(image: Denoising | Exception) -> Denoising:
    if isinstance(image, Exception):
        raise image
    return image


def compare(made: Made, expected: Made) -> dict[str, float | int | bool]:
    """PSNR in dB (infinite for equal pictures) and the largest difference, of pixels and of latents.

    The latents' difference is a share of their largest magnitude.
    """
    ours, theirs = (np.asarray(one.picture, dtype=np.int32) for one in (made, expected))
    difference = (made.latents.float() - expected.latents.float()).abs().max() / expected.latents.float().abs().max()
    return {
        "identical": bool(torch.equal(made.latents, expected.latents)),
        "psnr": psnr(ours, theirs),
        "largest_pixel_difference": int(np.abs(ours - theirs).max()),
        "largest_latent_difference": float(difference),
    }


def psnr(ours: Any, theirs: Any) -> float:
    """Peak signal-to-noise ratio of two arrays of values in 0..255, in dB."""
    mean_square = float(np.mean((ours - theirs) ** 2))
    return 10 * log10(255**2 / mean_square) if mean_square else inf
