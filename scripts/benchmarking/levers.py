"""What each lever of a speed table gives and costs: forward passes and whole pictures against the plain model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from PIL import Image

from pipelines.catalog import ModelEntry
from pipelines.decoding import to_pictures
from pipelines.denoising import Denoising
from pipelines.errors import CheckpointError
from pipelines.family import Family
from pipelines.levers import Speed
from pipelines.levers_toml import read_speed
from pipelines.profiling import timed
from pipelines.request import Wishes, settle
from pipelines.speed import keep_compiled

from .forward import WARM_UPS
from .parity import Made, compare
from .report import Progress

PLAIN = Speed(channels_last=False)
"""The model without any lever, those that are automatic included."""

Build = Callable[[Speed], Family]


@dataclass(frozen=True)
class Plan:
    """What is measured: forward passes of so many rows, and one guided picture of so many steps."""

    levers: Sequence[str]
    rows: Sequence[int]
    rounds: int
    steps: int | None
    decoded: bool
    """Whether pictures are compared too; those of random weights are noise."""


def parse_levers(written: str, entry: ModelEntry) -> Speed:
    """ "compile", "attention=_native_flash", or several with + between them, as a speed table would have them.

    Raises:
        CatalogError: there is no such lever, or it cannot be set so.
    """
    table: dict[str, Any] = {"channels_last": False}
    for part in written.split("+"):
        name, _, value = part.partition("=")
        try:
            table[name] = float(value) if value else True
        except ValueError:
            table[name] = value == "true" if value in ("true", "false") else value
    return read_speed(table, "--levers", entry.dtype, entry.guidance_scale)


@torch.inference_mode()
def measure_levers(entry: ModelEntry, build: Build, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Measure each lever beside the plain model, the two in turn, so that a drift of the machine hits both.

    Args:
        build: makes the model with a speed table, ready to run.

    Raises:
        CatalogError: a lever that does not exist.
    """
    speeds = {written: parse_levers(written, entry) for written in plan.levers}
    with TemporaryDirectory() as folder:
        keep_compiled(Path(folder))  # empty, so that compiling is what is measured
        plain, seconds = _built(build, PLAIN)
        progress(f"the plain model was ready after {seconds:.1f} s")
        measured = [_lever(name, speed, build, plain, plan, progress) for name, speed in speeds.items()]
    dtype = str(plain.dtype).removeprefix("torch.")
    size = f"{entry.width}x{entry.height}"
    return {"model": entry.name, "dtype": dtype, "size": size, "plain_ready_seconds": seconds, "levers": measured}


def _lever(name: str, speed: Speed, build: Build, plain: Family, plan: Plan, progress: Progress) -> dict[str, Any]:
    try:
        family, ready = _built(build, speed)
    except CheckpointError as error:
        progress(f"{name}: {error}")
        return {"lever": name, "refused": str(error)}
    progress(f"{name}: ready after {ready:.1f} s")
    pair = (plain, family)
    rows = [{"rows": count} | _times(pair, partial(_forward, rows=count), plan.rounds) for count in plan.rows]
    picture = _times(pair, lambda family: partial(_denoised, family, plan.steps), plan.rounds)
    expected, made = (_made(family, plan) for family in pair)
    return {"lever": name, "ready_seconds": ready, "rows": rows, "picture": picture} | _difference(made, expected, plan)


def _built(build: Build, speed: Speed) -> tuple[Family, float]:
    began = perf_counter()
    family = build(speed)
    return family, perf_counter() - began


def _times(
    pair: tuple[Family, Family], work_of: Callable[[Family], Callable[[], Any]], rounds: int
) -> dict[str, float]:
    """Seconds of the same work with the plain model and with the lever, taken in turn.

    The least of each: what else runs on a machine only ever adds.
    """
    works = [(work_of(family), family.device) for family in pair]
    for work, device in works * WARM_UPS:
        timed(work, device)
    times = [[timed(work, device) for work, device in works] for _ in range(rounds)]
    plain, fast = (min(column) for column in zip(*times, strict=True))
    return {"plain_seconds": plain, "seconds": fast, "gain": plain / fast}


def _forward(family: Family, rows: int) -> Callable[[], Any]:
    """A forward pass of images without guidance, one row each."""
    image = _begun(family, Wishes("a sunset over mountains", guidance_scale=1.0))
    return partial(family.predict, [image] * rows)


def _denoised(family: Family, steps: int | None) -> Denoising:
    image = _begun(family, Wishes("a sunset over mountains", steps=steps))
    while not image.finished:
        image.advance(family.predict([image])[0])
    return image


def _begun(family: Family, wishes: Wishes) -> Denoising:
    request = settle(wishes, family.entry, seed=1)
    return family.begin(request, family.encode([request])[0])


def _made(family: Family, plan: Plan) -> Made:
    latents = _denoised(family, plan.steps).latents
    (picture,) = to_pictures(family.decode(latents)) if plan.decoded else [Image.new("RGB", (1, 1))]
    return Made(latents, picture)


def _difference(made: Made, expected: Made, plan: Plan) -> dict[str, Any]:
    differences = compare(made, expected)
    if plan.decoded:
        return differences
    return {name: differences[name] for name in ("identical", "largest_latent_difference")}
