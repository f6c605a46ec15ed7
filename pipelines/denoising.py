"""One image in flight, and the contract every family of models keeps."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from PIL.Image import Image

from pipelines.catalog import FamilyFacts, ModelEntry, Offload
from pipelines.guidance import guide
from pipelines.hosting import bytes_of, into_host
from pipelines.offload import Turns, largest_layer, stream_leaves
from pipelines.progress import Progress, untold
from pipelines.prompts import Embedding, EmbeddingCache, Text
from pipelines.request import ImageRequest, TokenCount
from pipelines.samplers import SamplerChoice, build, set_timesteps


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


@dataclass(eq=False)
class Denoising:
    """One image between its first noise and its last latents.

    Attributes:
        latents: (1, C, h, w) on the device, in the model's dtype.
        sampler: a diffusers scheduler that belongs to this image alone, its timesteps and sigmas on the CPU.
        generator: on the CPU, so that a seed gives the same noise on every device.
        evaluation: how many times the network has been asked so far.
        extra: (rows, ...) tensors that only the family knows (SDXL's time ids).
    """

    request: ImageRequest
    conditioning: Conditioning
    sampler: Any
    latents: torch.Tensor
    generator: torch.Generator
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    evaluation: int = 0

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
    def rows(self) -> int:
        return self.request.rows

    @property
    def timestep(self) -> torch.Tensor:
        """The present timestep, a scalar on the CPU."""
        timestep: torch.Tensor = self.sampler.timesteps[self.evaluation]
        return timestep

    def model_input(self) -> torch.Tensor:
        """The network's input for this image, (rows, C, h, w)."""
        latents = torch.cat([self.latents] * self.rows) if self.rows > 1 else self.latents
        if hasattr(self.sampler, "scale_model_input"):
            scaled: torch.Tensor = self.sampler.scale_model_input(latents, self.timestep)
            return scaled
        return latents

    def advance(self, prediction: torch.Tensor) -> None:
        """Take the sampler's own step.

        Args:
            prediction: the network's output for this image's rows, (rows, C, h, w).
        """
        guided = guide(prediction, self.request.guidance_scale)
        keywords = {"generator": self.generator} if _draws_noise(self.sampler.__class__) else {}
        stepped = self.sampler.step(guided, self.timestep, self.latents, return_dict=False, **keywords)[0]
        self.latents = stepped.to(self.latents.dtype)
        self.evaluation += 1


@cache
def _draws_noise(sampler_class: Any) -> bool:
    return "generator" in inspect.signature(sampler_class.step).parameters


class Family(ABC):
    """One loaded model. `load` gives it on the CPU and `place` takes it to its device; all else needs it there.

    `park` takes it home again, as often as need be. A module of `pipelines.families` defines one subclass and names its
    `facts`; nothing else needs to know it.
    """

    facts: ClassVar[FamilyFacts]
    pipeline_class: ClassVar[str]
    """The diffusers pipeline whose checkpoints this family loads."""

    entry: ModelEntry
    device: torch.device
    dtype: torch.dtype
    vae: Any
    scheduler_config: Mapping[str, Any]
    cache: EmbeddingCache[Text, Embedding]
    offload: Offload = Offload.NONE
    """What of it stays in host memory; none unless whoever loads it says so, before its first `place`."""

    _turns: Turns | None = None
    _at_home = False

    @classmethod
    def missing(cls, entry: ModelEntry) -> dict[str, None]:
        """The parts that diffusers must be told an entry's pipeline does without."""
        return {}

    @classmethod
    @abstractmethod
    def load(cls, entry: ModelEntry, device: torch.device, dtype: torch.dtype, progress: Progress = untold) -> "Family":
        """Load the checkpoint, on the CPU still.

        Raises:
            CheckpointError: it is missing, damaged or of another family.
        """

    @abstractmethod
    def encode(self, requests: Sequence[ImageRequest]) -> list[Conditioning]:
        """Encode the prompts of many images together."""

    @abstractmethod
    def begin(self, request: ImageRequest, conditioning: Conditioning) -> Denoising:
        """Draw an image's first noise and build its sampler."""

    @abstractmethod
    def predict(self, batch: Sequence[Denoising]) -> list[torch.Tensor]:
        """The one network call: a (rows, C, h, w) prediction for each image of the batch."""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode (N, C, h, w) latents to (N, 3, H, W) pixels in -1..1."""

    @property
    @abstractmethod
    def modules(self) -> tuple[Any, ...]:
        """The networks besides the VAE, the denoiser first."""

    @property
    def networks(self) -> tuple[Any, ...]:
        """All that has weights."""
        return (*self.modules, self.vae)

    @property
    def weight_bytes(self) -> int:
        """How much memory the weights of all networks take."""
        return bytes_of(*self.networks)

    @property
    def device_bytes(self) -> int:
        """How much of it is on the device at once, at most."""
        if self.offload is Offload.NONE:
            return self.weight_bytes
        largest = max(bytes_of(network) for network in self.networks[self.offload is Offload.GROUP :])
        # One layer at work and the next on its way; the others have left by then.
        return max(largest, 2 * largest_layer(self.modules[0])) if self.offload is Offload.GROUP else largest

    def prepare(self) -> None:
        """Make the networks ready for inference, in the dtypes they are to run in."""
        for network in self.networks:
            network.requires_grad_(False).eval()
        overflows = self.dtype == torch.float16 and self.vae.config.get("force_upcast", False)
        # A VAE is cheap on a CPU, and bfloat16's eight bits of mantissa band its smooth skies.
        self.vae.to(torch.float32 if overflows or self.device.type == "cpu" else self.dtype)

    def place(self) -> None:
        """Put the networks on the device, or what `offload` leaves of them; each time after `park`, too."""
        self.prepare()
        self._at_home = False
        if self.offload is Offload.NONE:
            for network in self.networks:
                network.to(self.device)
        elif self._turns is None:
            streamed = self.offload is Offload.GROUP
            self._turns = Turns(self.networks[streamed:], self.device)
            if streamed:
                stream_leaves(self.modules[0], self.device, self._turns)

    def park(self, pinned: bool, progress: Progress = untold) -> None:
        """Have all weights in host memory of their own, from where `place` takes them without reading a file.

        Args:
            pinned: whether that memory is page-locked, from which CUDA copies several times faster.
        """
        self.cache.clear()  # it lies on the device
        if self._turns is not None:
            self._turns.leave()
        elif not self._at_home:
            into_host(self.networks, pinned, progress)
            self._at_home = True

    def new_sampler(self, request: ImageRequest) -> Any:
        """This request's own sampler, from the checkpoint's own scheduler config, its way laid out."""
        choice = SamplerChoice(request.sampler, request.schedule)
        sampler = build(choice, self.facts.prediction, self.scheduler_config, request.seed)
        options = self.sampler_options(sampler, request)
        set_timesteps(sampler, choice, self.facts.prediction, request.steps, self.device, **options)
        return sampler

    def sampler_options(self, sampler: Any, request: ImageRequest) -> dict[str, float]:
        """What a sampler of this family must know of the request besides its steps."""
        return {}

    def noise(self, request: ImageRequest, channels: int, factor: int) -> tuple[torch.Tensor, torch.Generator]:
        """A request's first noise, (1, channels, height / factor, width / factor), and its generator.

        Drawn on the CPU in the model's dtype, as diffusers' pipelines do for a CPU generator.
        """
        generator = torch.Generator("cpu").manual_seed(request.seed)
        shape = (1, channels, request.height // factor, request.width // factor)
        noise = torch.randn(shape, generator=generator, dtype=self.dtype)
        return noise.to(self.device), generator


def to_pictures(pixels: torch.Tensor) -> list[Image]:
    """Turn (N, 3, H, W) pixels in -1..1 into RGB pictures, rounding as diffusers' image processor does."""
    import PIL.Image

    # Rounded before they leave the device: a byte a channel is a quarter of what there is to wait for.
    values = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(value) for value in values]
