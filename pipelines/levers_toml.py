"""What `[models.NAME.speed]` and `[models.NAME.quality.WORD]` may say, read strictly. No torch here."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from pipelines.errors import CatalogError, InvalidRequest
from pipelines.levers import ATTENTION, QUALITY_TABLES, Preset, Speed
from pipelines.samplers import Prediction, check_steps, choose
from pipelines.toml_tables import convert
from pipelines.wording import nearest

_MEDIUM = {"auto": "medium", "medium": "medium", "standard": "medium"}


class _Speed(msgspec.Struct, forbid_unknown_fields=True):
    """One speed table as written."""

    channels_last: Literal["auto"] | bool = "auto"
    compile: bool = False
    cuda_graphs: bool = False
    fuse_qkv: bool = False
    quantize: Literal["fp8"] | None = None
    attention: str = "native"
    vae_tiling: Literal["auto"] | bool = "auto"
    vae_slicing: bool = False
    vae_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    skip_guidance: float = 0.0


class _Preset(msgspec.Struct, forbid_unknown_fields=True):
    """One quality table as written."""

    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    skip_guidance: float | None = None


def read_speed(table: Any, place: str, dtype: str, guidance_scale: float) -> Speed:
    """A model's speed table.

    Args:
        table: as TOML gives it.
        place: of the model, for messages.
        dtype: the model's, as written.
        guidance_scale: the model's default.

    Raises:
        CatalogError: an unknown lever, a wrong value, or one that contradicts another.
    """
    place = f"{place}.speed"
    written = convert(table, _Speed, place)
    if written.attention not in ATTENTION:
        raise CatalogError(
            f"{place}.attention: {written.attention[:60]!r} is not an attention kernel that can be chosen here; known:"
            f" {', '.join(ATTENTION)}."
        )
    if written.quantize is not None and dtype not in ("auto", "bfloat16"):
        raise CatalogError(f'{place}.quantize: "fp8" computes in bfloat16, not {dtype}; leave dtype or quantize out.')
    _check_skip(written.skip_guidance, guidance_scale, f"{place}.skip_guidance")
    values = msgspec.structs.asdict(written)
    auto = {key: None for key in ("channels_last", "vae_tiling") if values[key] == "auto"}
    return Speed(**values | auto)


def read_presets(
    tables: Mapping[str, Any], place: str, prediction: Prediction, sampler: str, guidance_scale: float
) -> tuple[Preset, ...]:
    """A model's quality tables, by word.

    Args:
        sampler: the model's default.
        guidance_scale: the model's default.

    Raises:
        CatalogError: a word or key nobody knows, or settings that the model cannot be run with.
    """
    presets = []
    for word, table in tables.items():
        inside = f"{place}.quality.{word}"
        if word in _MEDIUM:
            raise CatalogError(f"{inside}: {word} is the model's own settings; write them in the model's own table.")
        if word == "hd":
            raise CatalogError(f"{inside}: hd is another word for high; write quality.high.")
        if word not in QUALITY_TABLES:
            raise CatalogError(f"{inside}: {word[:40]!r} is not a quality{nearest(word, QUALITY_TABLES)}")
        written = convert(table, _Preset, inside)
        _check_preset(written, inside, prediction, sampler, guidance_scale)
        presets.append(Preset(word, **msgspec.structs.asdict(written)))
    return tuple(presets)


def _check_preset(written: _Preset, place: str, prediction: Prediction, sampler: str, guidance_scale: float) -> None:
    guidance = guidance_scale if written.guidance_scale is None else written.guidance_scale
    if not 0 <= guidance <= 50:  # NaN fails too
        raise CatalogError(f"{place}.guidance_scale: {guidance} is outside 0 to 50.")
    if written.schedule is not None and written.sampler is None:
        raise CatalogError(f"{place}.schedule: it needs a sampler beside it, such as {sampler!r}.")
    try:
        choice = choose(prediction, written.sampler or sampler, written.schedule)
        if written.steps is not None:
            check_steps(choice, prediction, written.steps)
    except InvalidRequest as error:
        raise CatalogError(f"{place}.{error.field}: {error}") from error
    if written.skip_guidance is not None:
        _check_skip(written.skip_guidance, guidance, f"{place}.skip_guidance")


def _check_skip(share: float, guidance_scale: float, place: str) -> None:
    if not 0 <= share <= 1:
        raise CatalogError(f"{place}: {share} is outside 0 to 1; it is the share of the steps without guidance.")
    if share > 0 and guidance_scale <= 1:
        raise CatalogError(f"{place}: guidance_scale {guidance_scale:g} is no guidance, so there is none to skip.")
