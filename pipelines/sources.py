"""Where the parts of a catalogue entry lie on this machine, and a look at them before any is loaded. No torch here."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipelines.catalog import LINEAR, ModelEntry
from pipelines.checkpoint import (
    CheckpointSize,
    folder_weights,
    inspect_checkpoint,
    inspect_index,
    measure,
    parts_lacking,
    refuse_code,
    refuse_other_formats,
    weight_files,
)
from pipelines.errors import CheckpointError, IncompleteCheckpoint
from pipelines.headers import read_json

_STAMPED = frozenset({".safetensors", ".json", ".txt", ".model"})
"""The endings of what a checkpoint is loaded from: weights, configurations, vocabularies."""


def find_checkpoint(entry: ModelEntry) -> Path | None:
    """Where an entry's checkpoint lies on this machine, or would; None for a hub id that was never downloaded."""
    return entry.local or _in_cache(entry.source, "model_index.json", entry.revision)


def _in_cache(hub_id: str, file: str, revision: str | None = None) -> Path | None:
    """The folder of the hub's cache that holds a repository's file, if any does."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, file, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def inspect_entry(entry: ModelEntry, pipeline_class: str) -> CheckpointSize | None:
    """Check all that lies on this machine of what an entry is built from: its source, `config`, `vae`, `preview`.

    Returns:
        None where a hub id is not here yet, or not all of it: it is downloaded when the model is first loaded.

    Raises:
        CheckpointError: as of `inspect_checkpoint`.
    """
    try:
        size = measure([*_vae_weights(entry), *preview_files(entry)])
        if entry.preview != LINEAR and not Path(entry.preview).is_absolute():
            if (decoder := _in_cache(entry.preview, "config.json")) is None:
                return None
            size += measure(decoder_files(decoder))
        if (place := find_checkpoint(entry)) is None:
            return None
        size += inspect_checkpoint(place, pipeline_class, entry.variant, entry.left_out)
        if entry.config is not None:
            local = Path(entry.config) if Path(entry.config).is_absolute() else None
            folder = local or _in_cache(entry.config, "model_index.json")
            if folder is None:
                return None
            index = inspect_index(folder, pipeline_class, entry.left_out)
            lacking = [part for part in parts_lacking(place, pipeline_class) if part not in entry.left_out]
            needed = [part for part in lacking if (index.get(part) or [None])[0]]
            size += measure([file for part in needed for file in weight_files(folder / part, part, entry.variant)])
    except IncompleteCheckpoint:
        named = [entry.source, entry.config, entry.vae, None if entry.preview == LINEAR else entry.preview]
        if all(Path(place).is_absolute() for place in named if place is not None):
            raise
        return None  # the rest is downloaded
    except OSError as error:
        raise CheckpointError(f"what model {entry.name!r} is built from cannot be read: {error}") from error
    return size


def used_weights(entry: ModelEntry) -> dict[str, Path]:
    """The files that an entry's weights are read from, by their names in the checkpoint's folder.

    An overriding VAE's stand in its folder `vae`; a single file stands for itself alone, whatever else is loaded
    beside it, since it is known by its own hash everywhere.

    Raises:
        CheckpointError, OSError: they are not on this machine, or not all of them.
    """
    if (place := find_checkpoint(entry)) is None:
        raise IncompleteCheckpoint(f"{entry.source} is not in the hub's cache yet.")
    if entry.single_file:
        return {place.name: place}
    used = folder_weights(place, read_json(place / "model_index.json"), entry.variant, entry.left_out)
    return used | {f"vae/{file.name}": file for file in _vae_weights(entry)}


def stamp_of(entry: ModelEntry) -> str:
    """What becomes another when the local files of an entry do: a digest of their names, sizes and times of change.

    It reads none of them, and passes over those that are not there. The files of a hub id never change under their
    names, so they count for nothing here.

    Returns:
        8 hexadecimal digits; "" where there is no local file at all.
    """
    looks = [
        (str(file), status.st_size, status.st_mtime_ns)
        for named in (entry.source, entry.config, entry.vae)
        for file, status in _looked_at(Path(named or ""))
    ]
    return hashlib.sha256(repr(looks).encode()).hexdigest()[:8] if looks else ""


def _looked_at(place: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The files of a local checkpoint and how each looks, in the order of their names."""
    if not place.is_absolute():
        return
    for file in sorted([place, *place.glob("*"), *place.glob("*/*")]):
        if file.suffix in _STAMPED:
            with suppress(OSError):
                yield file, file.stat()


def _vae_weights(entry: ModelEntry) -> list[Path]:
    """The weights of the VAE that an entry names in place of the checkpoint's own, wherever it comes from.

    Raises:
        CheckpointError: as of `vae_files`, or it is a hub's and not here yet.
    """
    if entry.vae is None or Path(entry.vae).is_absolute():
        return vae_files(entry)
    if (folder := _in_cache(entry.vae, "config.json")) is None:
        raise IncompleteCheckpoint(f"{entry.vae} is not in the hub's cache yet.")
    return weight_files(folder, "vae")


def vae_files(entry: ModelEntry) -> list[Path]:
    """The weights of the VAE that an entry names in place of the checkpoint's own; none for a hub id.

    Raises:
        CheckpointError: they are not there, bring code, or are not safetensors.
    """
    place = Path(entry.vae or "")
    if not place.is_absolute():
        return []
    if not place.exists():
        raise CheckpointError(f"{place} does not exist; correct `vae` in models.toml.")
    if place.is_file():
        refuse_other_formats(place)
        folder = Path(entry.config or entry.source)
        if folder.is_absolute() and folder.is_dir() and not (folder / "vae" / "config.json").exists():
            raise CheckpointError(f"{folder} lacks vae/config.json, by which the VAE {place} is configured.")
        return [place]
    refuse_code(place)
    if not (place / "config.json").exists():
        raise CheckpointError(f"{place} has no config.json, so it is not a VAE's folder; correct `vae` in models.toml.")
    return weight_files(place, "vae")


def preview_files(entry: ModelEntry) -> list[Path]:
    """The weights of the decoder that an entry's previews are drawn by; none for a hub id or the linear map.

    Raises:
        CheckpointError: they are not there, of another class, bring code, or are not safetensors.
    """
    place = Path(entry.preview)
    if not place.is_absolute():
        return []
    if not (place / "config.json").is_file():
        raise CheckpointError(f"{place} is no folder with a config.json; correct `preview` in models.toml.")
    return decoder_files(place)


def decoder_files(folder: Path) -> list[Path]:
    """The weights of a preview decoder's folder.

    Raises:
        CheckpointError: as of `preview_files`.
    """
    refuse_code(folder)
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderTiny" or config.get("out_channels", 3) != 3:
        raise CheckpointError(
            f"{folder} is of class {str(config.get('_class_name'))[:80]!r}; previews are drawn by an AutoencoderTiny of"
            " 3 channels. Correct `preview` in models.toml."
        )
    return weight_files(folder, "vae")
