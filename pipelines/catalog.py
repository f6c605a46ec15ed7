"""The catalogue: what models.toml may say, read strictly, and the entry each model becomes. No torch here."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from pipelines.errors import CatalogError, InvalidRequest, UnknownModel
from pipelines.samplers import Prediction, choose

DEMO_CATALOG = Path(__file__).parent / "demo" / "models.toml"
"""The catalogue of the shipped demo checkpoints, used when models.toml names no model."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_SIZE = re.compile(r"(\d{2,5})x(\d{2,5})")


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


class _Model(msgspec.Struct, forbid_unknown_fields=True):
    """One `[models.NAME]` table as written."""

    family: str
    source: str
    revision: str | None = None
    config: str | None = None
    variant: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    vae: str | None = None
    size: str | None = None
    native_sizes: list[str] | None = None
    max_pixels: int | None = None
    max_side: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    max_sequence_length: int = 256
    t5: bool = True
    aliases: list[str] = []
    license: str | None = None
    price: float = 0.0


_Table = TypeVar("_Table", bound=msgspec.Struct)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """models.toml as written."""

    default: str | None = None
    models: dict[str, dict[str, Any]] = {}


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

    @property
    def local(self) -> Path | None:
        """The folder or file on this machine, or None for a hub id."""
        return Path(self.source) if Path(self.source).is_absolute() else None


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


def load_catalog(path: Path, families: Mapping[str, FamilyFacts]) -> Catalog:
    """Read a catalogue file; the demo checkpoints when it is absent or names no model.

    Raises:
        CatalogError: with the file, the place in it, what is allowed and the nearest valid key.
    """
    written = _read(path) if path.exists() else _File()
    if not written.models:
        if written.default is not None:
            raise CatalogError(f"{path}: default = {written.default!r}, but no [models.…] table is there.")
        path = DEMO_CATALOG
        written = _read(path)
    entries: dict[str, ModelEntry] = {}
    taken: dict[str, str] = {}
    for name, table in written.models.items():
        place = f"{path}: models.{name}"
        entry = _entry(name, _convert(table, _Model, place), path, place, families)
        for spelling in (name, *entry.aliases):
            if taken.setdefault(spelling, name) != name:
                raise CatalogError(f"{place}: the name {spelling!r} already belongs to model {taken[spelling]!r}.")
        entries[name] = entry
    default = written.default or next(iter(entries))
    if default not in entries:
        raise CatalogError(f"{path}: default = {default!r} is not a model{_nearest(default, entries)}.")
    return Catalog(entries, default, path)


def _read(path: Path) -> _File:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogError(f"{path}: {error}") from error
    return _convert(data, _File, f"{path}")


def _entry(name: str, model: _Model, path: Path, place: str, families: Mapping[str, FamilyFacts]) -> ModelEntry:
    if not _NAME.fullmatch(name):
        raise CatalogError(f"{place}: a model's name is letters, digits and . _ - /, at most 100 of them.")
    if model.family not in families:
        raise CatalogError(f"{place}.family: {model.family!r} is not a family{_nearest(model.family, families)}.")
    facts = families[model.family]
    width, height = _size(model.size, f"{place}.size") if model.size else (facts.width, facts.height)
    native = tuple(model.native_sizes or ([f"{width}x{height}"] if model.size else facts.native_sizes))
    try:
        choice = choose(facts.prediction, model.sampler or facts.sampler, model.schedule)
    except InvalidRequest as error:
        raise CatalogError(f"{place}.{error.field}: {error}") from error
    entry = ModelEntry(
        name=name,
        family=model.family,
        prediction=facts.prediction,
        source=_located(model.source, path.parent),
        revision=model.revision,
        config=_located(model.config, path.parent) if model.config else None,
        variant=model.variant,
        dtype=model.dtype,
        vae=_located(model.vae, path.parent) if model.vae else None,
        width=width,
        height=height,
        size_step=facts.size_step,
        native_sizes=native,
        # Twice the native side each way is where these families fall apart into repeated motifs.
        max_pixels=4 * width * height if model.max_pixels is None else model.max_pixels,
        max_side=4 * max(width, height) if model.max_side is None else model.max_side,
        steps=facts.steps if model.steps is None else model.steps,
        guidance_scale=facts.guidance_scale if model.guidance_scale is None else model.guidance_scale,
        sampler=choice.sampler,
        schedule=choice.schedule,
        max_sequence_length=model.max_sequence_length,
        t5=model.t5,
        aliases=tuple(model.aliases),
        license=model.license,
        price=model.price,
    )
    _check(entry, place)
    return entry


def _check(entry: ModelEntry, place: str) -> None:
    """The rules that hold between an entry's fields."""
    ranges = {
        "steps": (entry.steps, 1, 150),
        "guidance_scale": (entry.guidance_scale, 0, 50),
        "max_sequence_length": (entry.max_sequence_length, 0, 512),
        "max_pixels": (entry.max_pixels, entry.width * entry.height, 2**28),
        "max_side": (entry.max_side, max(entry.width, entry.height), 2**14),
        "price": (entry.price, 0, 1e9),
    }
    for key, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise CatalogError(f"{place}.{key}: {value} is outside {low} to {high}.")
    for written in (f"{entry.width}x{entry.height}", *entry.native_sizes):
        width, height = _size(written, f"{place}.native_sizes")
        if width % entry.size_step or height % entry.size_step:
            raise CatalogError(
                f"{place}: size {written} is not a multiple of {entry.size_step}, {entry.family}'s step."
            )
    if entry.source.endswith(".safetensors") and entry.config is None:
        raise CatalogError(
            f"{place}.config: a single .safetensors file holds no configuration; name the diffusers folder or the"
            " hub id that it takes its configuration and tokenizers from."
        )


def _size(written: str, place: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(written)
    if match is None:
        raise CatalogError(f'{place}: {written!r} is not a size; write it as "1024x1024".')
    return int(match[1]), int(match[2])


def _located(source: str, folder: Path) -> str:
    """An absolute path for what lies on this machine ("./x", "../x", "/x", "~/x", "x.safetensors"), else a hub id."""
    path = Path(source).expanduser()
    looks_local = source.startswith((".", "/", "~")) or source.endswith(".safetensors") or (folder / path).exists()
    return str((folder / path).resolve()) if looks_local else source


def _convert(data: Mapping[str, Any], kind: type[_Table], place: str) -> _Table:
    """Decode one table strictly; the message gives the key and, for an unknown one, the nearest that exists."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        if unknown := re.search(r"unknown field `([^`]+)`", message):
            hint = _nearest(unknown[1], kind.__struct_fields__)
            raise CatalogError(f"{place}: unknown key {unknown[1]!r}{hint}.") from error
        key = re.search(r" - at `\$([^`]*)`", message)
        raise CatalogError(f"{place}{key[1] if key else ''}: {message.split(' - at ')[0]}.") from error


def _nearest(written: str, known: Any) -> str:
    near = get_close_matches(written, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
