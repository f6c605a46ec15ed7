"""The catalogue: which models there are, and everything that is known of each. No torch here."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import UnknownModel
from pipelines.levers import Preset, Speed
from pipelines.pricing import Price
from pipelines.samplers import Prediction
from pipelines.wording import nearest

Look = tuple[int, ...] | None
"""How a file looked: what changes when it is edited or replaced; None where there was none."""

WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
"""What a file of weights may end in, in any case; the loader refuses all but the first."""


LINEAR = "linear"
"""The `preview` of a model whose previews are a linear map of its latents, fitted when it is loaded."""


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
    """One model, every default filled in. Sizes are in pixels."""

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
    preview: str
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
    price: Price
    speed: Speed = Speed()
    quality: tuple[Preset, ...] = ()
    stamp: str = ""
    """How the files on this machine looked when models.toml was read: see `pipelines.sources.stamp_of`."""

    @cached_property
    def identity(self) -> str:
        """The name and, behind an @, what its loaded networks depend on: another identity is another model to load."""
        place = (self.family, self.source, self.revision, self.config, self.variant, self.vae, self.preview, self.stamp)
        levers = replace(self.speed, skip_guidance=0.0)  # that one is a matter of each request
        way = (self.dtype, self.t5, self.max_sequence_length, levers, self.offload)
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


def name_of(identity: str) -> str:
    """The name in an entry's `identity`."""
    return identity.partition("@")[0]


@dataclass(frozen=True)
class Catalog:
    """The models this server offers.

    Attributes:
        path: the file they stand in; the demo's own where that of the operator names none.
        file: the operator's file, whether it is there or not; None for a catalogue that was not read from one.
        seen: how that file looked before it was read.
        hub: its `[hub]` tables as they are written, for whoever knows what they mean.
    """

    entries: Mapping[str, ModelEntry]
    default: str
    path: Path
    file: Path | None = None
    seen: Look = None
    hub: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identities(self) -> frozenset[str]:
        """What there is to load, by identity."""
        return frozenset(entry.identity for entry in self.entries.values())

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
        names = [spelling for entry in self.entries.values() for spelling in (entry.name, *entry.aliases)]
        raise UnknownModel(f"The model {name[:80]!r} does not exist{nearest(name[:80], names)}")
