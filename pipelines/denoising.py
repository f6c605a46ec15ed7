"""One image in flight, and the contract every family of models keeps."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from PIL.Image import Image

from pipelines.catalog import FamilyFacts, ModelEntry
from pipelines.forward import Forward
from pipelines.graphs import Inputs
from pipelines.guidance import guide
from pipelines.prompts import Embedding, EmbeddingCache, Text
from pipelines.request import ImageRequest, TokenCount, Wishes, settle
from pipelines.samplers import SamplerChoice, build, set_timesteps
from pipelines.speed import quantize, shape_networks, tiles, vae_dtype, warm_up


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


class Family(ABC):
    """One loaded model. `load` gives it on the CPU and `place` takes it to its device; all else needs it there.

    A module of `pipelines.families` defines one subclass and names its `facts`; nothing else needs to know it.
    """

    facts: ClassVar[FamilyFacts]
    pipeline_class: ClassVar[str]
    """The diffusers pipeline whose checkpoints this family loads."""
    repeated_blocks: ClassVar[tuple[str, ...]]
    """The class names of the denoiser's blocks that recur: one of each is compiled, and fp8 is for them."""

    entry: ModelEntry
    device: torch.device
    dtype: torch.dtype
    vae: Any
    vae_factor: int
    """How many pixels of a side become one latent."""
    scheduler_config: Mapping[str, Any]
    cache: EmbeddingCache[Text, Embedding]
    forward: Forward | None = None
    warm: bool = False

    @classmethod
    def missing(cls, entry: ModelEntry) -> dict[str, None]:
        """The parts that diffusers must be told an entry's pipeline does without."""
        return {}

    @classmethod
    @abstractmethod
    def load(cls, entry: ModelEntry, device: torch.device, dtype: torch.dtype) -> "Family":
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
    def inputs(self, batch: Sequence[Denoising]) -> Inputs:
        """What the denoiser is called with for a batch, the images' rows one after the other."""

    @abstractmethod
    def network(self, inputs: Inputs) -> torch.Tensor:
        """The denoiser: inputs of so many rows to their (rows, C, h, w) prediction."""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode (N, C, h, w) latents to (N, 3, H, W) pixels in -1..1."""

    @abstractmethod
    def latents_of(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode (N, 3, H, W) pixels in -1..1 to the likeliest (N, C, h, w) latents, such as `decode` takes."""

    def decode_precisely(self, latents: torch.Tensor) -> torch.Tensor:
        """`decode` in float32, for latents on which the VAE overflows in its own dtype, as SDXL's does in float16."""
        dtype = self.vae.dtype
        try:
            self.vae.to(torch.float32)
            return self.decode(latents)
        finally:
            self.vae.to(dtype)

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """The network that is asked at every step."""

    @property
    @abstractmethod
    def modules(self) -> tuple[Any, ...]:
        """The networks besides the VAE."""

    @property
    def weight_bytes(self) -> int:
        """How much memory the weights of all networks take, the VAE's too."""
        return sum(weight.nbytes for module in (*self.modules, self.vae) for weight in module.parameters())

    def encode_alone(self, request: ImageRequest) -> Conditioning:
        """Encode without company and without what was kept from any: the same bits each time."""
        kept, self.cache = self.cache, EmbeddingCache()
        try:
            return self.encode([request])[0]
        finally:
            self.cache = kept

    def predict(self, batch: Sequence[Denoising]) -> list[torch.Tensor]:
        """The one network call: a (rows, C, h, w) prediction for each image of the batch."""
        assert self.forward is not None, "place() was not called"
        run = self.forward.plainly if batch[0].request.deterministic else self.forward
        return list(torch.split(run(self.inputs(batch)), [image.rows for image in batch]))

    def place(self) -> None:
        """Put the networks on the device, for inference, in the dtypes and with the levers they are to run with.

        May be called again after they were moved away, or after it failed for want of memory.

        Raises:
            CheckpointError: a lever cannot be had.
        """
        speed = self.entry.speed
        shape_networks(self.denoiser, self.repeated_blocks, self.vae, speed, self.device)
        for module in self.modules:
            module.requires_grad_(False).eval().to(self.device)
        self.vae.requires_grad_(False).eval().to(self.device, vae_dtype(self.vae, speed, self.dtype, self.device))
        if speed.quantize is not None:
            quantize(self.denoiser, self.repeated_blocks, self.entry.name)
        self.forward = Forward(self.network, speed, self.device)
        if speed.compile and not self.warm:
            warm_up(self.entry, self._try)
            self.warm = True

    def _try(self, rows: int, width: int, height: int) -> None:
        """One forward pass like those to come."""
        wishes = Wishes("warm-up", width=width, height=height, guidance_scale=1.0)
        request = settle(wishes, self.entry, seed=0)
        self.predict([self.begin(request, self.encode_alone(request))] * rows)

    def decode_scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """The VAE itself, tiled where that is wished: (N, C, h, w) latents in its own scale to (N, 3, H, W) pixels."""
        self.vae.use_tiling = tiles(self.entry.speed, latents.shape[-2] * latents.shape[-1] * self.vae_factor**2)
        pixels: torch.Tensor = self.vae.decode(latents, return_dict=False)[0]
        return pixels

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
