"""The contract every family of models keeps, and what a loaded model of any family can do."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from pipelines.catalog import FamilyFacts, ModelEntry, Offload
from pipelines.denoising import Conditioning, Denoising
from pipelines.forward import Forward
from pipelines.graphs import Inputs
from pipelines.hosting import bytes_of, into_host
from pipelines.offload import Turns, largest_layer, stream_leaves
from pipelines.progress import Progress, untold
from pipelines.prompts import Embedding, EmbeddingCache, Text
from pipelines.request import ImageRequest, Wishes, settle
from pipelines.samplers import SamplerChoice, build, set_timesteps
from pipelines.speed import quantize, shape_networks, tiles, vae_dtype, warm_up


class Family(ABC):
    """One loaded model. `load` gives it on the CPU and `place` takes it to its device; all else needs it there.

    `park` takes it home again, as often as need be. A module of `pipelines.families` defines one subclass and names its
    `facts`; nothing else needs to know it.
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
    preview_decoder: Any = None
    """The small network that draws its previews, where its entry names one that could be had."""
    scheduler_config: Mapping[str, Any]
    cache: EmbeddingCache[Text, Embedding]
    forward: Forward | None = None
    warm: bool = False
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
    def inputs(self, batch: Sequence[Denoising]) -> Inputs:
        """What the denoiser is called with for a batch, the images' rows one after the other."""

    @abstractmethod
    def ask(self, denoiser: Any, inputs: Inputs) -> torch.Tensor:
        """Call a denoiser of this family: inputs of so many rows to their (rows, C, h, w) prediction."""

    def network(self, inputs: Inputs) -> torch.Tensor:
        """Ask the model's own denoiser."""
        return self.ask(self.denoiser, inputs)

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
        """The networks besides the VAE, the denoiser first."""

    @property
    def networks(self) -> tuple[Any, ...]:
        """All that a picture is made with."""
        return (*self.modules, self.vae)

    @property
    def _small(self) -> tuple[Any, ...]:
        """The networks so small that they take no turns: a preview never costs the denoiser its own."""
        return () if self.preview_decoder is None else (self.preview_decoder,)

    @property
    def weight_bytes(self) -> int:
        """How much memory the weights of all networks take."""
        return bytes_of(*self.networks, *self._small)

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

    @property
    def device_bytes(self) -> int:
        """How much of it is on the device at once, at most."""
        if self.offload is Offload.NONE:
            return self.weight_bytes
        largest = max(bytes_of(network) for network in self.networks[self.offload is Offload.GROUP :])
        if self.offload is Offload.GROUP:
            # One layer at work and the next on its way; the others have left by then.
            largest = max(largest, 2 * largest_layer(self.modules[0]))
        return largest + bytes_of(*self._small)

    def prepare(self) -> None:
        """Make the networks ready for inference, in the dtypes and with the levers they are to run with.

        Raises:
            CheckpointError: a lever cannot be had.
        """
        speed = self.entry.speed
        shape_networks(self.denoiser, self.repeated_blocks, self.vae, speed, self.device)
        for network in self.networks:
            network.requires_grad_(False).eval()
        self.vae.to(vae_dtype(self.vae, speed, self.dtype, self.device))

    def place(self, progress: Progress = untold) -> None:
        """Put the networks on the device, or what `offload` leaves of them; each time after `park`, too.

        May be called again after it failed for want of memory.

        Args:
            progress: told of each warm-up of what is compiled.
        """
        self.prepare()
        self._at_home = False
        for network in self._small if self.offload is not Offload.NONE else (*self.networks, *self._small):
            network.to(self.device)
        if self.offload is not Offload.NONE and self._turns is None:
            streamed = self.offload is Offload.GROUP
            self._turns = Turns(self.networks[streamed:], self.device)
            if streamed:
                stream_leaves(self.modules[0], self.device, self._turns)
        if self.entry.speed.quantize is not None:
            quantize(self.denoiser, self.repeated_blocks, self.entry.name)
        self.forward = Forward(self.network, self.entry.speed, self.device)
        if self.entry.speed.compile and not self.warm:
            warm_up(self.entry, self._try, progress)
            self.warm = True

    def park(self, pinned: bool, progress: Progress = untold) -> None:
        """Have all weights in host memory of their own, from where `place` takes them without reading a file.

        Args:
            pinned: whether that memory is page-locked, from which CUDA copies several times faster.
        """
        self.cache.clear()  # it lies on the device
        self.forward = None  # its recorded graphs hold addresses there
        if self._turns is not None:
            self._turns.leave()
        if not self._at_home:
            # Those that take turns have a home already.
            into_host(self._small if self._turns is not None else (*self.networks, *self._small), pinned, progress)
            self._at_home = True

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
