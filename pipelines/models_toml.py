"""models.toml: what it may say, read strictly, and the catalogue it becomes. No torch here."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from pipelines.catalog import LINEAR, WEIGHT_SUFFIXES, Catalog, FamilyFacts, Look, ModelEntry, Offload
from pipelines.errors import CatalogError, InvalidRequest
from pipelines.levers_toml import read_presets, read_speed
from pipelines.pricing import read_price
from pipelines.samplers import Prediction, SamplerChoice, check_steps, choose
from pipelines.sources import stamp_of
from pipelines.toml_tables import convert
from pipelines.wording import nearest

DEMO_CATALOG = Path(__file__).parent / "demo" / "models.toml"
"""The catalogue of the shipped demo checkpoints, used when models.toml names no model."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_SIZE = re.compile(r"(\d{2,5})x(\d{2,5})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SYNTAX = re.compile(r"(.*) \(at ([^()]+)\)")

MAX_SIDE = 2**14
MAX_PIXELS = 2**28
_T5_LENGTH = 256


class _Model(msgspec.Struct, forbid_unknown_fields=True):
    """One `[models.NAME]` table as written."""

    family: str
    source: str
    revision: str | None = None
    config: str | None = None
    variant: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    offload: Offload = Offload.NONE
    vae: str | None = None
    preview: str = LINEAR
    size: str | None = None
    native_sizes: list[str] | None = None
    max_pixels: int | None = None
    max_side: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    max_sequence_length: int | None = None
    t5: bool | None = None
    aliases: list[str] = []
    license: str | None = None
    price: Any = 0
    speed: dict[str, Any] = {}
    quality: dict[str, Any] = {}


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """models.toml as written."""

    default: str | None = None
    models: dict[str, Any] = {}
    hub: dict[str, Any] = {}


def load_catalog(path: Path, families: Mapping[str, FamilyFacts]) -> Catalog:
    """Read a catalogue file; the demo checkpoints when it is absent or names no model.

    Raises:
        CatalogError: with the file, the place in it, what is allowed and the nearest valid key.
    """
    file, seen = path, look(path)  # looked at before it is read, so that no edit falls between the two
    written = _read(path)
    hub = written.hub
    if not written.models:
        if written.default is not None:
            raise CatalogError(f"{path}: default = {written.default!r}, but no [models.…] table is there.")
        path = DEMO_CATALOG
        written = _read(path)
    entries: dict[str, ModelEntry] = {}
    taken: dict[str, str] = {}
    for name, table in written.models.items():
        place = f"{path}: models.{name}"
        entry = _entry(name, convert(table, _Model, place), path, place, families)
        for spelling in (name, *entry.aliases):
            if taken.setdefault(spelling, name) != name:
                raise CatalogError(f"{place}: the name {spelling!r} already belongs to model {taken[spelling]!r}.")
        entries[name] = entry
    default = written.default or next(iter(entries))
    if default not in entries:
        raise CatalogError(f"{path}: default = {default!r} is not a model{nearest(default, entries)}")
    return Catalog(entries, default, path, file, seen, hub)


def look(file: Path) -> Look:
    """What tells one state of a file from another without reading it; links are followed."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    except OSError as error:  # it cannot be read either, and reading says why
        return (error.errno or 0,)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> _File:
    """models.toml as written; empty where there is none."""
    try:
        # Windows' editors begin a file with a mark that TOML does not know.
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return _File()
    except (OSError, ValueError, RecursionError) as error:
        raise CatalogError(f"{path}: {_place_first(str(error))}") from error
    return convert(data, _File, f"{path}")


def _place_first(message: str) -> str:
    """tomllib's "… (at line 2, column 5)" with the place in front, where all other errors of a catalogue have it."""
    match = _SYNTAX.fullmatch(message)
    return f"{match[2]}: {match[1]}." if match else message


def _entry(name: str, model: _Model, path: Path, place: str, families: Mapping[str, FamilyFacts]) -> ModelEntry:
    for spelling in (name, *model.aliases):
        if not _NAME.fullmatch(spelling):
            raise CatalogError(
                f"{place}: {spelling[:100]!r} is no name; a name is letters, digits and . _ - /, at most 100 of them."
            )
    if model.family not in families:
        raise CatalogError(f"{place}.family: {model.family!r} is not a family{nearest(model.family, families)}")
    facts = families[model.family]
    _check_keys(model, facts, place)
    width, height = _size(model.size, f"{place}.size") if model.size else (facts.width, facts.height)
    # Twice the native side each way is where these families fall apart into repeated motifs.
    max_pixels = min(4 * width * height, MAX_PIXELS) if model.max_pixels is None else model.max_pixels
    max_side = min(4 * max(width, height), MAX_SIDE) if model.max_side is None else model.max_side
    choice = _choice(model, facts, place)
    guidance_scale = facts.guidance_scale if model.guidance_scale is None else model.guidance_scale
    entry = ModelEntry(
        name=name,
        family=model.family,
        prediction=facts.prediction,
        source=_located(model.source, path.parent, f"{place}.source"),
        revision=model.revision,
        config=None if model.config is None else _located(model.config, path.parent, f"{place}.config"),
        variant=model.variant,
        dtype=model.dtype,
        offload=model.offload,
        vae=None if model.vae is None else _located(model.vae, path.parent, f"{place}.vae"),
        preview=_preview(model.preview, path.parent, f"{place}.preview"),
        width=width,
        height=height,
        size_step=facts.size_step,
        native_sizes=_native_sizes(model, facts, max_pixels, max_side),
        max_pixels=max_pixels,
        max_side=max_side,
        steps=facts.steps if model.steps is None else model.steps,
        guidance_scale=guidance_scale,
        sampler=choice.sampler,
        schedule=choice.schedule,
        max_sequence_length=_T5_LENGTH if model.max_sequence_length is None else model.max_sequence_length,
        t5=model.t5 is not False,
        aliases=tuple(model.aliases),
        license=model.license,
        price=read_price(model.price, f"{place}.price"),
        speed=read_speed(model.speed, place, model.dtype, guidance_scale),
        quality=read_presets(model.quality, place, facts.prediction, choice.sampler, guidance_scale),
    )
    _check_ranges(entry, place)
    _check_sizes(entry, place)
    _check_source(entry, place)
    _check_offload(entry, place)
    return replace(entry, stamp=stamp_of(entry))


def _choice(model: _Model, facts: FamilyFacts, place: str) -> SamplerChoice:
    """The model's default sampler and schedule, which must take its default steps."""
    try:
        choice = choose(facts.prediction, model.sampler or facts.sampler, model.schedule)
        check_steps(choice, facts.prediction, facts.steps if model.steps is None else model.steps)
    except InvalidRequest as error:
        raise CatalogError(f"{place}.{error.field}: {error}") from error
    return choice


def _native_sizes(model: _Model, facts: FamilyFacts, max_pixels: int, max_side: int) -> tuple[str, ...]:
    """The sizes as written; else the model's own size; else those of the family's that its limits allow."""
    if model.native_sizes:
        return tuple(model.native_sizes)
    if model.size:
        return (model.size,)
    sizes = {written: _size(written, "") for written in facts.native_sizes}
    fitting = [text for text, (w, h) in sizes.items() if max(w, h) <= max_side and w * h <= max_pixels]
    return tuple(fitting) or (f"{facts.width}x{facts.height}",)


def _check_keys(model: _Model, facts: FamilyFacts, place: str) -> None:
    """Keys that mean nothing for a model are refused, not ignored: somebody believes that they do something."""
    for key in ("t5", "max_sequence_length"):
        # Of these architectures only the flow transformers read T5.
        if getattr(model, key) is not None and facts.prediction is not Prediction.FLOW:
            raise CatalogError(f"{place}.{key}: family {model.family!r} has no T5 text encoder; leave {key} out.")


def _check_ranges(entry: ModelEntry, place: str) -> None:
    ranges: dict[str, tuple[float, float, float]] = {
        "guidance_scale": (entry.guidance_scale, 0, 50),
        "max_sequence_length": (entry.max_sequence_length, 0, 512),
        "size": (max(entry.width, entry.height), entry.size_step, MAX_SIDE),
        "max_pixels": (entry.max_pixels, entry.width * entry.height, MAX_PIXELS),
        "max_side": (entry.max_side, max(entry.width, entry.height), MAX_SIDE),
    }
    for key, (value, low, high) in ranges.items():
        if not low <= value <= high:  # NaN fails too
            raise CatalogError(f"{place}.{key}: {value} is outside {low} to {high:.17g}.")


def _check_sizes(entry: ModelEntry, place: str) -> None:
    """The sizes that a model's table names must be ones that it may make."""
    own, priced = [f"{entry.width}x{entry.height}"], [size for size, _ in entry.price.sizes]
    for key, sizes in (("size", own), ("native_sizes", entry.native_sizes), ("price", priced)):
        for written in sizes:
            width, height = _size(written, f"{place}.{key}")
            if not width or not height or width % entry.size_step or height % entry.size_step:
                raise CatalogError(
                    f"{place}.{key}: {written} is not a multiple of {entry.size_step}, {entry.family}'s step."
                )
            if max(width, height) > entry.max_side or width * height > entry.max_pixels:
                raise CatalogError(
                    f"{place}.{key}: {written} is beyond max_side {entry.max_side} or max_pixels {entry.max_pixels}."
                )


def _check_offload(entry: ModelEntry, place: str) -> None:
    """Levers that need a network's weights to stay where they are."""
    for lever in ("compile", "cuda_graphs", "quantize"):
        if entry.offload is not Offload.NONE and getattr(entry.speed, lever):
            raise CatalogError(
                f"{place}.speed.{lever}: it needs the weights to stay on the device, and offload ="
                f' "{entry.offload}" moves them; leave one of the two out.'
            )


def _check_source(entry: ModelEntry, place: str) -> None:
    """The rules between where a checkpoint lies and what else is said about it."""
    if entry.single_file and entry.config is None:
        raise CatalogError(
            f"{place}.config: a single file holds no configuration; name the diffusers folder or the hub id that it"
            " takes its configuration and tokenizers from."
        )
    if entry.config is not None and not entry.single_file:
        raise CatalogError(f"{place}.config: a diffusers folder or hub id brings its own; leave config out.")
    if entry.revision is not None and entry.local is not None:
        raise CatalogError(f"{place}.revision: it names a commit of a hub id, and the source is on this machine.")


def _size(written: str, place: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(written)
    if match is None:
        raise CatalogError(f'{place}: {written[:40]!r} is not a size; write it as "1024x1024".')
    return int(match[1]), int(match[2])


def _located(source: str, folder: Path, place: str) -> str:
    """An absolute path for what lies on this machine ("./x", "../x", "/x", "~/x", "x.safetensors"), else a hub id."""
    if not source.strip() or _CONTROL.search(source):
        raise CatalogError(f"{place}: {source[:40]!r} is neither a path nor a hub id.")
    try:
        path = folder / Path(source).expanduser()
        if source.startswith((".", "/", "~")) or source.lower().endswith(WEIGHT_SUFFIXES) or path.exists():
            return str(path.resolve())
    except (OSError, RuntimeError) as error:
        raise CatalogError(f"{place}: {source[:40]!r}: {error}") from error
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError as error:
        raise CatalogError(
            f"{place}: there is no {source[:80]!r} in {folder}, and it is no hub id (owner/name)."
        ) from error
    return source


def _preview(written: str, folder: Path, place: str) -> str:
    """Linear, or where a decoder lies: a folder or hub id, since a single file does not say how it is built."""
    if written == LINEAR:
        return written
    if written.lower().endswith(WEIGHT_SUFFIXES):
        raise CatalogError(f"{place}: {written[:80]!r} is one file; name the folder it lies in, with its config.json.")
    return _located(written, folder, place)
