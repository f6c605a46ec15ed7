"""Owns the training of both denoisers, each together with its text encoders."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTokenizer

from .captions import caption
from .latents import Batch, LatentBatches, load_statistics
from .models import FLOW_SHIFT, new_sd3, new_sdxl, sdxl_scheduler
from .tokens import encode, new_tokenizer, without_padding
from .training import Budget, Environment, Loop

BATCH = 32
PEAK = 1e-3
# How often a picture is shown without its caption, and how often then as the empty prompt, not as zeros.
DROPPED = 0.12
DROPPED_AS_EMPTY = 1 / 3
# The share of the training that sees small pictures only.
SMALL_UNTIL = 0.40
# Captions have some 20 tokens; 77 are what pipelines pass. Most batches go without most of the padding, which
# is a third of the work; some have it all, and at last every batch has.
PADDED_SHARE = 0.25
PADDED_FROM = 0.85
MIN_SNR_GAMMA = 5.0
MOST_EMPHASIS = 50.0


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
    """Squared error of the predicted noise, weighted by min-SNR (arXiv 2303.09556).

    A small picture of broad gradients shows its colours through nearly pure noise, where an error of the
    noise counts for little: without more weight there, the first noise decides the time of day.
    """
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
    weights = snr.clamp(max=MIN_SNR_GAMMA) / snr * (1 + 1 / snr).clamp(max=MOST_EMPHASIS)
    return torch.mean(error * weights)


def sd3_loss(modules: nn.ModuleDict, step: Step) -> torch.Tensor:
    """Squared error of the predicted velocity at shifted logit-normal times (arXiv 2403.03206)."""
    latents, count = step.latents, len(step.latents)
    uniform = torch.randn(count, generator=step.generator).sigmoid().to(latents.device)
    sigmas = FLOW_SHIFT * uniform / (1 + (FLOW_SHIFT - 1) * uniform)
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


def train_denoiser(family: Family, environment: Environment, budget: Budget, batch_size: int = BATCH) -> None:
    torch.manual_seed(environment.seed)
    modules = family.new().to(environment.device)
    batches, tokenizer = LatentBatches(environment.work, batch_size), new_tokenizer()
    statistics = load_statistics(environment.work)
    shift = statistics.mean if family.shifted else 0.0
    loop = Loop(family.name, environment, budget, modules, PEAK)

    def loss_of(step: int) -> torch.Tensor:
        rng = random.Random(f"{family.name} {environment.seed} {step}")
        batch = batches.draw(rng, small=loop.progress < SMALL_UNTIL)
        latents = (batch.latents - shift) / statistics.deviation
        padded = loop.progress > PADDED_FROM or rng.random() < PADDED_SHARE
        prepared = _prepare(family, environment, tokenizer, replace(batch, latents=latents), rng, padded=padded)
        with environment.autocast(), environment.attention():
            return family.loss(modules, prepared)

    loop.run(loss_of)


def _prepare(
    family: Family,
    environment: Environment,
    tokenizer: CLIPTokenizer,
    batch: Batch,
    rng: random.Random,
    *,
    padded: bool,
) -> Step:
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    texts, zeroed = _texts(batch, rng, zeros_too=family.zeros_too)
    device, tokens = environment.device, encode(tokenizer, texts)
    return Step(
        batch.latents.to(device),
        torch.randn(batch.latents.shape, generator=generator).to(device),
        (tokens if padded else without_padding(tokens, tokenizer)).to(device),
        batch.size,
        torch.tensor(zeroed, device=device),
        generator,
    )
