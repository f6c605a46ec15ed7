"""Owns the rendered data set: pictures of training scenes in buckets of sizes, kept on disk."""

import json
import random
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .landscapes import render
from .scenes import Combination, Extra, Land, Scene, SceneSampler, Time

Size = tuple[int, int]
Pictures = npt.NDArray[np.uint8]

NATIVE: Size = (128, 128)
# Width and height, and their share of the data set. The native square comes most often.
BUCKETS: dict[Size, float] = {
    NATIVE: 0.60,
    (160, 96): 0.10,
    (96, 160): 0.10,
    (192, 128): 0.06,
    (128, 192): 0.06,
    (96, 96): 0.08,
}
# The first part of the training learns composition from pictures of a quarter of the area, four times as fast.
SMALL: Size = (64, 64)
SMALL_SHARE = 0.40


@dataclass(frozen=True)
class Bucket:
    """Pictures of one size; `pictures` has shape (count, height, width, 3)."""

    combinations: list[Combination]
    pictures: Pictures

    @property
    def size(self) -> Size:
        return self.pictures.shape[2], self.pictures.shape[1]


def sample_scenes(count: int, seed: int, size: Size, *, held_out: bool = False) -> list[Scene]:
    sampler, rng = SceneSampler(held_out=held_out), random.Random(f"scenes {seed} {size} {held_out}")
    return [Scene(sampler.sample(rng), *size, seed=seed * 1_000_000 + index) for index in range(count)]


def render_all(scenes: list[Scene]) -> Pictures:
    return np.stack([np.asarray(render(scene)) for scene in scenes])


def make_data(folder: Path, count: int, seed: int, workers: int = 2) -> None:
    """Render the training pictures, bucket by bucket; a bucket that is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for size, share in {SMALL: SMALL_SHARE, **BUCKETS}.items():
        path = pictures_path(folder, size)
        if path.exists():
            continue
        scenes = sample_scenes(max(round(count * share), 2), seed, size)
        parts = [scenes[start : start + 250] for start in range(0, len(scenes), 250)]
        if workers > 1 and len(parts) > 1:
            # A fresh interpreter per worker: a fork of a process that runs OpenMP may hang.
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                pictures = np.concatenate(list(pool.map(render_all, parts)))
        else:
            pictures = np.concatenate([render_all(part) for part in parts])
        described = [_describe(scene.combination) for scene in scenes]
        path.with_suffix(".json").write_text(json.dumps(described))
        np.save(path, pictures)
        print(f"data: {len(scenes)} pictures of {size_name(size)}", flush=True)


def size_name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def pictures_path(folder: Path, size: Size) -> Path:
    return folder / f"pictures-{size_name(size)}.npy"


def load_data(folder: Path, sizes: Iterable[Size] = BUCKETS) -> list[Bucket]:
    """The rendered buckets of some sizes, memory-mapped."""
    buckets = []
    for size in sizes:
        path = pictures_path(folder, size)
        described = json.loads(path.with_suffix(".json").read_text())
        buckets.append(Bucket([_combination(item) for item in described], np.load(path, mmap_mode="r")))
    return buckets


def _describe(combination: Combination) -> list[str]:
    return [combination.time, combination.land, *sorted(combination.extras)]


def _combination(described: list[str]) -> Combination:
    time, land, *extras = described
    return Combination(Time(time), Land(land), frozenset(Extra(extra) for extra in extras))
