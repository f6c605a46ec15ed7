"""Owns the cached latents: every training picture encoded once, and batches drawn from them."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from .autoencoder import as_images
from .pictures import BUCKETS, NATIVE, SMALL, Size, load_data, size_name
from .scenes import Combination
from .training import Environment

ENCODE_BATCH = 50


@dataclass(frozen=True)
class LatentStatistics:
    """What brings latents to zero mean and unit deviation; measured over the cached latents."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Batch:
    """Raw latents (batch, channels, height / 4, width / 4) of pictures of one size, and what they show."""

    size: Size
    combinations: list[Combination]
    latents: torch.Tensor


def latents_path(folder: Path) -> Path:
    return folder / "latents.safetensors"


@torch.inference_mode()
def cache_latents(environment: Environment, autoencoder: AutoencoderKL) -> None:
    """Encode all pictures, unless that has been done."""
    path = latents_path(environment.work)
    if path.exists():
        return
    encoded: dict[str, torch.Tensor] = {}
    for bucket in load_data(environment.work / "data", [SMALL, *BUCKETS]):
        parts = []
        for start in range(0, len(bucket.pictures), ENCODE_BATCH):
            pictures = torch.from_numpy(bucket.pictures[start : start + ENCODE_BATCH].copy())
            with environment.autocast():
                posterior = autoencoder.encode(as_images(pictures.to(environment.device))).latent_dist
            parts.append(posterior.mean.to("cpu", torch.float16))
        encoded[size_name(bucket.size)] = torch.cat(parts).contiguous()
        print(f"latents: {len(bucket.pictures)} of {size_name(bucket.size)}", flush=True)
    partial = path.with_suffix(".partial")
    save_file(encoded, partial)
    partial.rename(path)


def load_statistics(folder: Path) -> LatentStatistics:
    """Measured over the latents of the native size."""
    native = load_file(latents_path(folder))[size_name(NATIVE)].float()
    return LatentStatistics(float(native.mean()), float(native.std()))


class LatentBatches:
    """Draws batches of one size each: small pictures, or full sizes as often as their share says."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self._latents = load_file(latents_path(folder))
        buckets = load_data(folder / "data", [SMALL, *BUCKETS])
        self._combinations = {bucket.size: bucket.combinations for bucket in buckets}
        self._batch_size = batch_size

    def draw(self, rng: random.Random, *, small: bool) -> Batch:
        size = SMALL if small else rng.choices(list(BUCKETS), list(BUCKETS.values()))[0]
        combinations = self._combinations[size]
        rows = [rng.randrange(len(combinations)) for _ in range(self._batch_size)]
        return Batch(size, [combinations[row] for row in rows], self._latents[size_name(size)][rows].float())
