"""Owns the training of both denoisers, each together with its text encoders."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTokenizer

from .captions import caption
from .latents import Batch, LatentBatches, load_statistics
from .models import new_sd3, new_sdxl, sdxl_scheduler
from .tokens import encode, new_tokenizer
from .training import Budget, Environment, Loop

BATCH = 32
PEAK = 1e-3
# How often a picture is shown without its caption, and how often then as the empty prompt, not as zeros.
DROPPED = 0.12
DROPPED_AS_EMPTY = 1 / 3
MIN_SNR_GAMMA = 5.0


@dataclass(frozen=True)
class Step:
    """One batch, ready for a loss: scaled latents, noise, token numbers, and who loses the caption."""

    latents: torch.Tensor
    noise: torch.Tensor
    tokens: torch.Tensor
    size: tuple[int, int]
    zeroed: torch.Tensor
    generator: torch.Generator


LossOf = Callable[[nn.ModuleDict, Step], torch.Tensor]


def _texts(batch: Batch, rng: random.Random, *, zeros_too: bool) -> tuple[list[str], list[bool]]:
    """A fresh caption per picture; some are dropped, to the empty prompt or (where used) to zeros."""
    texts, zeroed = [], []
    for combination in batch.combinations:
        dropped = rng.random() < DROPPED
        as_zeros = dropped and zeros_too and rng.random() > DROPPED_AS_EMPTY
        texts.append("" if dropped else caption(combination, rng))
        zeroed.append(as_zeros)
    return texts, zeroed


def hidden_and_pooled(modules: nn.ModuleDict, tokens: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Both encoders' last hidden states but one, side by side (batch, 77, 128), and their pooled outputs."""
    outputs = [modules[name](tokens, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return hidden, [output[0] for output in outputs]


def sdxl_loss(modules: nn.ModuleDict, step: Step) -> torch.Tensor:
    """Squared error of the predicted noise, weighted by min-SNR (arXiv 2303.09556)."""
    latents, count = step.latents, len(step.latents)
    alphas = sdxl_scheduler().alphas_cumprod.to(latents.device)
    times = torch.randint(0, len(alphas), (count,), generator=step.generator).to(latents.device)
    alpha = alphas[times].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * step.noise
    hidden, pooled = hidden_and_pooled(modules, step.tokens)
    kept = (~step.zeroed).to(hidden.dtype)
    width, height = step.size
    sizes = latents.new_tensor([height, width, 0, 0, height, width]).repeat(count, 1)
    added = {"text_embeds": pooled[1] * kept[:, None], "time_ids": sizes}
    predicted = modules["denoiser"](
        noisy, times, encoder_hidden_states=hidden * kept[:, None, None], added_cond_kwargs=added
    ).sample
    snr = alphas[times] / (1 - alphas[times])
    error = (predicted.float() - step.noise).square().mean((1, 2, 3))
    return (error * snr.clamp(max=MIN_SNR_GAMMA) / snr).mean()


def sd3_loss(modules: nn.ModuleDict, step: Step) -> torch.Tensor:
    """Squared error of the predicted velocity at logit-normal times (arXiv 2403.03206)."""
    latents, count = step.latents, len(step.latents)
    sigmas = torch.randn(count, generator=step.generator).sigmoid().to(latents.device)
    sigma = sigmas.view(-1, 1, 1, 1)
    noisy = (1 - sigma) * latents + sigma * step.noise
    hidden, pooled = hidden_and_pooled(modules, step.tokens)
    predicted = modules["denoiser"](
        noisy,
        timestep=sigmas * 1000,
        encoder_hidden_states=hidden,
        pooled_projections=torch.cat(pooled, dim=-1),
    ).sample
    return functional.mse_loss(predicted.float(), step.noise - latents)


@dataclass(frozen=True)
class Family:
    """What differs between the two trainings."""

    name: str
    new: Callable[[], nn.ModuleDict]
    loss: LossOf
    zeros_too: bool
    shifted: bool


SDXL = Family("sdxl", new_sdxl, sdxl_loss, zeros_too=True, shifted=False)
SD3 = Family("sd3", new_sd3, sd3_loss, zeros_too=False, shifted=True)


def train_denoiser(family: Family, environment: Environment, budget: Budget) -> None:
    torch.manual_seed(environment.seed)
    modules = family.new().to(environment.device)
    batches, tokenizer = LatentBatches(environment.work, BATCH), new_tokenizer()
    statistics = load_statistics(environment.work)
    shift = statistics.mean if family.shifted else 0.0
    loop = Loop(family.name, environment, budget, modules, PEAK)

    def loss_of(step: int) -> torch.Tensor:
        rng = random.Random(f"{family.name} {environment.seed} {step}")
        batch = batches.draw(rng)
        latents = (batch.latents - shift) / statistics.deviation
        prepared = _prepare(family, environment, tokenizer, batch, latents, rng)
        with environment.autocast(), environment.attention():
            return family.loss(modules, prepared)

    loop.run(loss_of)


def _prepare(
    family: Family,
    environment: Environment,
    tokenizer: CLIPTokenizer,
    batch: Batch,
    latents: torch.Tensor,
    rng: random.Random,
) -> Step:
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    texts, zeroed = _texts(batch, rng, zeros_too=family.zeros_too)
    device = environment.device
    return Step(
        latents.to(device),
        torch.randn(latents.shape, generator=generator).to(device),
        encode(tokenizer, texts).to(device),
        batch.size,
        torch.tensor(zeroed, device=device),
        generator,
    )
