"""Measuring what a model's work costs on its device: seconds by rows and shape, once a device, then read from disk."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipelines.denoising import Denoising
from pipelines.device import Device, is_out_of_memory, synchronize
from pipelines.family import Family
from pipelines.profile import PIXELS, Point, Profile, curve_of, fit_flops
from pipelines.request import ImageRequest

log = logging.getLogger(__name__)

VERSION = 1
"""Rises when a profile means something else than before."""

ROWS = (1, 2, 4, 8, 16)
FACTORS = (1.0, 0.5)
"""Of the model's own side: the shape most people ask for, and one that leaves a device idle."""

FLOP_FACTORS = (0.5, 0.75, 1.0)
"""Three shapes give the three coefficients of operations over pixels."""

BUDGET_SECONDS = 3.0
"""What measuring may take; what it has no time for is read off the curve."""

ROUNDS = 2
"""Each point is the best of so many: the first pays for what is done once."""


def profile_of(family: Family, device: Device, folder: Path | None) -> Profile:
    """A model's profile: from the folder, if it was measured on this device with this torch before, else measured.

    Args:
        folder: where profiles are kept; None keeps none.
    """
    place = None if folder is None else folder / f"{_digest(family, device)}.json"
    if place is not None and place.exists():
        try:
            return msgspec.json.decode(place.read_bytes(), type=Profile)
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be read (%s) and is measured anew", place, error)
    profile = measure(family)
    if place is not None and profile.counted:
        _keep(place, profile)
    return profile


def measure(family: Family) -> Profile:
    """Measure a placed model. Rows for which there is no memory are left out."""
    counted = _flops(family)
    flops = counted or PIXELS
    rough = Profile(flops, ((1.0, 1.0),), 1.0, 1.0)
    began = perf_counter()
    points: list[Point] = []
    for width, height in _sizes(family, FACTORS):
        for rows, seconds in _steps(family, width, height, began):
            points.append((rough.row_flops(width * height) * rows, seconds))
    image = unguided_images(family, *_sizes(family, (1.0,))[0], 1)[0]
    pixels = image.request.width * image.request.height
    decode = _seconds(lambda: family.decode(image.latents), family.device)
    encode = _seconds(lambda: _begin(family, replace(image.request, prompt="a hat", seed=1)), family.device, rounds=1)
    return Profile(flops, curve_of(points), encode, decode / pixels, counted is not None)


def _flops(family: Family) -> tuple[float, float, float] | None:
    """The coefficients of a model's operations over pixels; None where they cannot be counted."""
    try:
        sizes = _sizes(family, FLOP_FACTORS)
        return fit_flops([(w * h, float(count_flops(family, unguided_images(family, w, h, 1)))) for w, h in sizes])
    except Exception as error:  # whatever the libraries raise of a network that they cannot run without weights
        log.warning("model %s: its operations cannot be counted (%s); pixels stand for them", family.entry.name, error)
        return None


def _steps(family: Family, width: int, height: int, began: float) -> Iterator[tuple[int, float]]:
    """Seconds of a forward pass by rows, while memory and time last; one row always."""
    images = unguided_images(family, width, height, max(ROWS))
    for rows in ROWS:
        if rows > 1 and perf_counter() - began > BUDGET_SECONDS:
            return
        batch = images[:rows]
        try:
            yield rows, _seconds(partial(family.predict, batch), family.device)
        except RuntimeError as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
            return


def _seconds(work: Callable[[], Any], device: torch.device, rounds: int = ROUNDS) -> float:
    """The least seconds that work takes."""
    return min(timed(work, device) for _ in range(rounds))


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that work takes, the device's own included."""
    synchronize(device)
    began = perf_counter()
    work()
    synchronize(device)
    return perf_counter() - began


def count_flops(family: Family, batch: Sequence[Denoising]) -> int:
    """Floating-point operations of one forward pass of the plain network, two for each multiply-add.

    They are counted on a copy of the network that has shapes alone (torch's meta device), so the counting computes
    nothing and takes none of the device's memory. Attention is counted as its plain matrix products, of which some
    fused kernels tell the counter nothing.

    Raises:
        Exception: whatever the libraries raise of a network that they cannot build or run without weights.
    """
    denoiser = family.denoiser
    # In float32 throughout: operations do not depend on the precision.
    inputs = {name: torch.empty(tensor.shape, device="meta") for name, tensor in family.inputs(batch).items()}
    with torch.device("meta"):
        blank = type(denoiser).from_config(denoiser.config).eval()
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        family.ask(blank, inputs)
    return int(counter.get_total_flops())


def unguided_images(family: Family, width: int, height: int, count: int) -> list[Denoising]:
    """Images of one row each, before their first step."""
    entry = family.entry
    request = ImageRequest(
        model=entry.name,
        prompt="",
        negative_prompt=None,
        width=width,
        height=height,
        steps=entry.steps,
        guidance_scale=1.0,
        sampler=entry.sampler,
        schedule=entry.schedule,
        seed=0,
    )
    return [_begin(family, request) for _ in range(count)]


def _begin(family: Family, request: ImageRequest) -> Denoising:
    return family.begin(request, family.encode([request])[0])


def _sizes(family: Family, factors: Sequence[float]) -> list[tuple[int, int]]:
    """The model's own size times each factor, in the pixels it can make."""
    entry, step = family.entry, family.entry.size_step
    sides = [
        [max(step, round(side * factor / step) * step) for side in (entry.width, entry.height)] for factor in factors
    ]
    return list(dict.fromkeys((width, height) for width, height in sides))


def _digest(family: Family, device: Device) -> str:
    """What a profile depends on: the device, torch, and what the networks are; not what they have learnt."""
    shapes = [tuple(weight.shape) for module in (*family.modules, family.vae) for weight in module.parameters()]
    size = (family.entry.width, family.entry.height)
    way = (str(family.dtype), family.entry.speed, family.offload)
    said = (VERSION, str(device), torch.__version__, way, size, shapes)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:24]


def _keep(place: Path, profile: Profile) -> None:
    """Write a profile; a disk that refuses costs only the next start's time."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(msgspec.json.encode(profile))
        part.replace(place)
    except OSError as error:
        log.warning("the profile cannot be kept: %s", error)
