"""Owns the probe: a small classifier of renders that says which time, land and extras a picture shows."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from .autoencoder import as_images, load_autoencoder
from .pictures import load_data
from .scenes import Combination, Extra, Land, Time
from .training import Budget, Environment, Loop, averaged_weights, state_path

TIMES, LANDS, EXTRAS = list(Time), list(Land), list(Extra)
CHANNELS = (24, 48, 96, 128)
BATCH = 48
PEAK = 2e-3


@dataclass(frozen=True)
class Seen:
    """What the probe sees in one picture."""

    time: Time
    land: Land
    extras: frozenset[Extra]


class Probe(nn.Module):
    """Four strided convolutions and three heads; images (batch, 3, height, width) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for channels in CHANNELS:
            layers += [nn.Conv2d(width, channels, 4, 2, 1), nn.GroupNorm(8, channels), nn.SiLU()]
            layers += [nn.Conv2d(channels, channels, 3, 1, 1), nn.GroupNorm(8, channels), nn.SiLU()]
            width = channels
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * width, len(TIMES) + len(LANDS) + len(EXTRAS))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of the time, of the land, and of each extra."""
        features = self.body(images)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        time, land, extras = self.head(pooled).split([len(TIMES), len(LANDS), len(EXTRAS)], dim=1)
        return time, land, extras

    @torch.inference_mode()
    def look(self, images: torch.Tensor) -> list[Seen]:
        times, lands, extras = self(images)
        return [
            Seen(TIMES[time], LANDS[land], frozenset(extra for extra, on in zip(EXTRAS, row, strict=True) if on))
            for time, land, row in zip(
                times.argmax(1).tolist(), lands.argmax(1).tolist(), (extras > 0).tolist(), strict=True
            )
        ]


def _roughened(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Renders as a generator might give them: blurred now and then, with a little noise, mirrored."""
    if torch.rand((), generator=generator) < 0.5:
        scale = 1 + torch.rand((), generator=generator).item()
        size = [round(side / scale) for side in images.shape[-2:]]
        small = functional.interpolate(images, size, mode="bilinear", antialias=True)
        images = functional.interpolate(small, images.shape[-2:], mode="bilinear")
    if torch.rand((), generator=generator) < 0.5:
        images = images.flip(3)
    strength = 0.1 * torch.rand((), generator=generator)
    return images + strength * torch.randn(images.shape, generator=generator)


def train_probe(environment: Environment, budget: Budget) -> Probe:
    """Train on renders of training scenes at the native size, a third of them through the autoencoder."""
    torch.manual_seed(environment.seed + 1)
    native, autoencoder = load_data(environment.work / "data")[0], load_autoencoder(environment)
    probe = Probe().to(environment.device)
    loop = Loop("probe", environment, budget, nn.ModuleDict({"probe": probe}), PEAK)

    def loss_of(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(environment.seed + step)
        rows = torch.randint(len(native.combinations), (BATCH,), generator=generator).tolist()
        images = as_images(torch.stack([torch.from_numpy(native.pictures[row].copy()) for row in rows]))
        with environment.autocast():
            if step % 3 == 0:
                with torch.no_grad():
                    images = autoencoder(images.to(environment.device)).sample.float().cpu()
            return _loss(probe, _roughened(images, generator), [native.combinations[row] for row in rows])

    loop.run(loss_of)
    return probe


def _loss(probe: Probe, images: torch.Tensor, combinations: list[Combination]) -> torch.Tensor:
    device = probe.head.weight.device
    times, lands, extras = (logits.float() for logits in probe(images.to(device)))
    wanted = torch.tensor([[float(extra in c.extras) for extra in EXTRAS] for c in combinations], device=device)
    time = torch.tensor([TIMES.index(c.time) for c in combinations], device=device)
    land = torch.tensor([LANDS.index(c.land) for c in combinations], device=device)
    apart = functional.binary_cross_entropy_with_logits(extras, wanted)
    return functional.cross_entropy(times, time) + functional.cross_entropy(lands, land) + 3 * apart


def load_probe(environment: Environment) -> Probe:
    probe = Probe()
    averaged_weights(state_path(environment.work, "probe"), nn.ModuleDict({"probe": probe}))
    return probe.eval()
