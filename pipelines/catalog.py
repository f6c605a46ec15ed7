"""The catalogue: which models there are, and everything that is known of each. No torch here."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from pipelines.errors import UnknownModel
from pipelines.samplers import Prediction

WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
"""What a file of weights may end in, in any case; the loader refuses all but the first."""


class Offload(StrEnum):
    """What of a model stays in host memory while it is in use, for devices that are too small for all of it.

    MODEL: the text encoders, the denoiser and the VAE are each on the device only while at work.
    GROUP: the denoiser, too, is there one layer at a time.
    """

    NONE = "none"
    MODEL = "model"
    GROUP = "group"


@dataclass(frozen=True)
class FamilyFacts:
    """What is true of every model of a family, and what its models do where models.toml is silent.

    `size_step` is the number of pixels that width and height must be multiples of.
    """

    prediction: Prediction
    size_step: int
    width: int
    height: int
    steps: int
    guidance_scale: float
    native_sizes: tuple[str, ...]
    sampler: str = "Euler"


@dataclass(frozen=True)
class ModelEntry:
    """One model, every default filled in. Sizes are in pixels, the price is per image in the operator's currency."""

    name: str
    family: str
    prediction: Prediction
    source: str
    revision: str | None
    config: str | None
    variant: str | None
    dtype: str
    offload: Offload
    vae: str | None
    width: int
    height: int
    size_step: int
    native_sizes: tuple[str, ...]
    max_pixels: int
    max_side: int
    steps: int
    guidance_scale: float
    sampler: str
    schedule: str
    max_sequence_length: int
    t5: bool
    aliases: tuple[str, ...]
    license: str | None
    price: float

    @cached_property
    def identity(self) -> str:
        """The name and, behind an @, what its loaded networks depend on: another identity is another model to load."""
        place = (self.family, self.source, self.revision, self.config, self.variant, self.vae)
        way = (self.dtype, self.t5, self.max_sequence_length, self.offload)
        return f"{self.name}@{hashlib.sha256(repr((place, way)).encode()).hexdigest()[:8]}"

    @property
    def local(self) -> Path | None:
        """The folder or file on this machine, or None for a hub id."""
        return Path(self.source) if Path(self.source).is_absolute() else None

    @property
    def single_file(self) -> bool:
        """Whether the checkpoint is one file and not a folder in diffusers' layout."""
        return self.source.lower().endswith(WEIGHT_SUFFIXES)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The checkpoint's components that are not wanted, so that nothing of theirs need be there."""
        without_t5 = () if self.t5 else ("text_encoder_3", "tokenizer_3")
        return without_t5 if self.vae is None else (*without_t5, "vae")


@dataclass(frozen=True)
class Catalog:
    """The models this server offers."""

    entries: Mapping[str, ModelEntry]
    default: str
    path: Path

    def resolve(self, name: str | None) -> ModelEntry:
        """The entry of a model name or alias; the default for None.

        Raises:
            UnknownModel: naming what there is.
        """
        if name is None:
            return self.entries[self.default]
        for entry in self.entries.values():
            if name == entry.name or name in entry.aliases:
                return entry
        raise UnknownModel(f"The model {name[:80]!r} does not exist. Available: {', '.join(self.entries)}.")
