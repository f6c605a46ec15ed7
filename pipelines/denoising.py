"""One image in flight: what the network is told of it, and the steps its own sampler takes."""

import inspect
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from pipelines.guidance import guide
from pipelines.prompts import Embedding
from pipelines.request import ImageRequest, TokenCount


@dataclass(frozen=True)
class Conditioning:
    """What the network is told about one image, one row per row of its forward pass, the unconditional row first.

    Attributes:
        text: (rows, tokens, dim) hidden states of the text encoders.
        pooled: (rows, dim) their pooled output.
        prompt: the count of the prompt's tokens.
        negative_prompt: of the negative prompt's, where the network is told one.
    """

    text: torch.Tensor
    pooled: torch.Tensor
    prompt: TokenCount
    negative_prompt: TokenCount

    @classmethod
    def of(cls, positive: Embedding, negative: Embedding | None) -> "Conditioning":
        """Join one image's embeddings; without a negative one the image has no unconditional row."""
        rows = [positive] if negative is None else [negative, positive]
        return cls(
            torch.stack([row.states for row in rows]),
            torch.stack([row.pooled for row in rows]),
            positive.count,
            TokenCount() if negative is None else negative.count,
        )


@dataclass(frozen=True)
class Answer:
    """What the network said last, and to what: kept as it came, so that a preview can be made of it later or never.

    Attributes:
        shown: (1, C, h, w) latents as the sampler scaled them for the network.
        prediction: (1, C, h, w), guided.
        timestep: of the noise in `shown`, a scalar on the CPU.
    """

    shown: torch.Tensor
    prediction: torch.Tensor
    timestep: torch.Tensor


@dataclass(eq=False)
class Denoising:
    """One image between its first noise and its last latents.

    Attributes:
        latents: (1, C, h, w) on the device, in the model's dtype.
        sampler: a diffusers scheduler that belongs to this image alone, its timesteps and sigmas on the CPU.
        generator: on the CPU, so that a seed gives the same noise on every device.
        evaluation: how many times the network has been asked so far.
        extra: tensors that only the family knows (SDXL's time ids).
        shown: (1, C, h, w), what the network was last shown.
        answer: its last answer that a step was taken with, if any was.
    """

    request: ImageRequest
    conditioning: Conditioning
    sampler: Any
    latents: torch.Tensor
    generator: torch.Generator
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    evaluation: int = 0
    shown: torch.Tensor | None = None
    answer: Answer | None = None

    @property
    def evaluations(self) -> int:
        """How many network evaluations the sampler needs; second-order ones need about two a step."""
        return len(self.sampler.timesteps)

    @property
    def finished(self) -> bool:
        return self.evaluation >= self.evaluations

    @property
    def step(self) -> int:
        """Steps done, in the client's terms (0..request.steps)."""
        return self.evaluation * self.request.steps // self.evaluations

    @property
    def guided(self) -> bool:
        """Whether the next evaluation needs the unconditional row; the last steps may go without."""
        if not self.request.skip_guidance:
            return self.request.guided
        return self.request.guided and self.step < self.request.guided_steps

    @property
    def rows(self) -> int:
        """How many rows the next evaluation takes."""
        return 2 if self.guided else 1

    @property
    def text(self) -> torch.Tensor:
        """The text of the next evaluation's rows, (rows, tokens, dim); the conditional row is the last."""
        return self.conditioning.text[-self.rows :]

    @property
    def pooled(self) -> torch.Tensor:
        """The pooled text of the next evaluation's rows, (rows, dim)."""
        return self.conditioning.pooled[-self.rows :]

    @property
    def timestep(self) -> torch.Tensor:
        """The present timestep, a scalar on the CPU."""
        timestep: torch.Tensor = self.sampler.timesteps[self.evaluation]
        return timestep

    def model_input(self) -> torch.Tensor:
        """The network's input for this image, (rows, C, h, w)."""
        scales = hasattr(self.sampler, "scale_model_input")
        shown = self.sampler.scale_model_input(self.latents, self.timestep) if scales else self.latents
        self.shown = shown
        return torch.cat([shown] * self.rows) if self.rows > 1 else shown

    def advance(self, prediction: torch.Tensor) -> None:
        """Take the sampler's own step. When it raises, the image is as it was, so that the step can be taken again.

        Args:
            prediction: the network's output for this image's rows, (rows, C, h, w).
        """
        assert self.shown is not None, "a prediction answers what model_input() gave"
        noise, history = self.generator.get_state(), _history(self.sampler)
        try:
            guided = guide(prediction, self.request.guidance_scale)
            answer = Answer(self.shown, guided, self.timestep)
            keywords = {"generator": self.generator} if _draws_noise(self.sampler.__class__) else {}
            stepped = self.sampler.step(guided, self.timestep, self.latents, return_dict=False, **keywords)[0]
            self.latents = stepped.to(self.latents.dtype)
        except BaseException:
            self.generator.set_state(noise)
            vars(self.sampler).clear()
            vars(self.sampler).update(history)
            raise
        self.evaluation += 1
        self.answer = answer


def _history(sampler: Any) -> dict[str, Any]:
    """All a sampler knows of the steps it took. It replaces its tensors; only lists of them it changes in place."""
    return {name: list(value) if isinstance(value, list) else value for name, value in vars(sampler).items()}


@cache
def _draws_noise(sampler_class: Any) -> bool:
    return "generator" in inspect.signature(sampler_class.step).parameters
