"""Owns the cached latents: every training picture encoded once, and batches drawn from them."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from .autoencoder import as_images
from .pictures import BUCKETS, load_data
from .scenes import Combination
from .training import Environment

ENCODE_BATCH = 50


@dataclass(frozen=True)
class LatentStatistics:
    """What brings latents to zero mean and unit deviation; computed over the cached latents."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class LatentBucket:
    """Latents (count, channels, height / 8, width / 8) of pictures of one size, in half precision."""

    size: tuple[int, int]
    share: float
    combinations: list[Combination]
    latents: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Raw latents of one size and what they show."""

    size: tuple[int, int]
    combinations: list[Combination]
    latents: torch.Tensor


@torch.inference_mode()
def cache_latents(environment: Environment, autoencoder: AutoencoderKL) -> None:
    """Encode all pictures, unless that has been done."""
    path = latents_path(environment.work)
    if path.exists():
        return
    encoded: dict[str, torch.Tensor] = {}
    for bucket in load_data(environment.work / "data"):
        parts = []
        for start in range(0, len(bucket.pictures), ENCODE_BATCH):
            pictures = torch.from_numpy(bucket.pictures[start : start + ENCODE_BATCH].copy())
            with environment.autocast():
                posterior = autoencoder.encode(as_images(pictures.to(environment.device))).latent_dist
            parts.append(posterior.mean.to("cpu", torch.float16))
        encoded[f"{bucket.size[0]}x{bucket.size[1]}"] = torch.cat(parts).contiguous()
        print(f"latents: {len(bucket.pictures)} of {bucket.size[0]}x{bucket.size[1]}", flush=True)
    save_file(encoded, path)


def latents_path(folder: Path) -> Path:
    return folder / "latents.safetensors"


def load_statistics(folder: Path) -> LatentStatistics:
    """Measured over the latents of the native size."""
    native = load_file(latents_path(folder))["{}x{}".format(*BUCKETS[0])].float()
    return LatentStatistics(float(native.mean()), float(native.std()))


class LatentBatches:
    """Draws batches of one size each; sizes come as often as their share says."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        encoded = load_file(latents_path(folder))
        self._buckets = [
            LatentBucket(bucket.size, share, bucket.combinations, encoded[f"{bucket.size[0]}x{bucket.size[1]}"])
            for bucket, (_, _, share) in zip(load_data(folder / "data"), BUCKETS, strict=True)
        ]
        self._batch_size = batch_size

    def draw(self, rng: random.Random) -> Batch:
        bucket = rng.choices(self._buckets, [bucket.share for bucket in self._buckets])[0]
        rows = [rng.randrange(len(bucket.combinations)) for _ in range(self._batch_size)]
        return Batch(bucket.size, [bucket.combinations[row] for row in rows], bucket.latents[rows].float())
