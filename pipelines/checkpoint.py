"""Looking at a checkpoint before it is loaded: is it all there, safetensors only, and how big is it? No torch here.

The safetensors format is an 8-byte little-endian header length, a JSON header of tensors with dtype, shape and byte
offsets, then the bytes (https://github.com/huggingface/safetensors#format). A file that lies about these is refused
here, before any library maps it into memory.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.catalog import ModelEntry
from pipelines.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The bound that the safetensors library itself sets."""

_PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
}

# The only classes a checkpoint may name, by component; anything else would be somebody's code.
_CLASSES: dict[str, frozenset[str]] = {
    "unet": frozenset({"UNet2DConditionModel"}),
    "transformer": frozenset({"SD3Transformer2DModel"}),
    "vae": frozenset({"AutoencoderKL"}),
    "text_encoder": frozenset({"CLIPTextModel", "CLIPTextModelWithProjection"}),
    "text_encoder_2": frozenset({"CLIPTextModelWithProjection"}),
    "text_encoder_3": frozenset({"T5EncoderModel"}),
    "tokenizer": frozenset({"CLIPTokenizer", "CLIPTokenizerFast"}),
    "tokenizer_2": frozenset({"CLIPTokenizer", "CLIPTokenizerFast"}),
    "tokenizer_3": frozenset({"T5Tokenizer", "T5TokenizerFast"}),
    # These two are not used here; a checkpoint may list them.
    "image_encoder": frozenset({"CLIPVisionModelWithProjection", "SiglipVisionModel"}),
    "feature_extractor": frozenset({"CLIPImageProcessor", "SiglipImageProcessor"}),
}
_LIBRARIES = frozenset({"diffusers", "transformers"})


@dataclass(frozen=True)
class CheckpointSize:
    """How much a checkpoint holds: files, bytes on disk and number of parameters."""

    files: int
    disk_bytes: int
    parameters: int


def find_checkpoint(entry: ModelEntry) -> Path | None:
    """Where an entry's checkpoint lies on this machine, or would; None for a hub id that was never downloaded."""
    if entry.local is not None:
        return entry.local
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(entry.source, "model_index.json", revision=entry.revision)
    return Path(index).parent if isinstance(index, str) else None


def inspect_checkpoint(path: Path, pipeline_class: str, variant: str | None = None) -> CheckpointSize:
    """Check a diffusers folder or a single .safetensors file without loading it.

    Args:
        path: the folder or file.
        pipeline_class: the diffusers pipeline that `model_index.json` must name.
        variant: only the weight files of this variant ("fp16") count, where they exist.

    Raises:
        CheckpointError: naming the file, what is wrong with it, and the remedy.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; correct `source` in models.toml or put the checkpoint there.")
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path} is not a .safetensors file; other formats can run code and are refused.")
        return _measure([path])
    _check_index(path, pipeline_class)
    _refuse_pickles(path)
    return _measure(list(_weight_files(path, variant)))


def _check_index(folder: Path, pipeline_class: str) -> None:
    file = folder / "model_index.json"
    if not file.exists():
        raise CheckpointError(f"{folder} has no model_index.json, so it is not a diffusers checkpoint folder.")
    index = read_json(file)
    named = index.get("_class_name")
    if named != pipeline_class:
        raise CheckpointError(
            f"{file} is of class {named!r}, not {pipeline_class}; set the `family` in models.toml that fits it."
        )
    for component, value in index.items():
        if component.startswith("_") or not isinstance(value, list) or value == [None, None]:
            continue
        if component != "scheduler" and (
            len(value) != 2 or value[0] not in _LIBRARIES or value[1] not in _CLASSES.get(component, frozenset())
        ):
            raise CheckpointError(f"{file}: component {component!r} names {value}, which is not a known safe class.")
        if component not in ("image_encoder", "feature_extractor") and not (folder / component).is_dir():
            raise CheckpointError(f"{folder} lacks the folder {component!r} that its model_index.json promises.")


def _refuse_pickles(folder: Path) -> None:
    """A component whose weights exist only as a pickle is refused; so is an index that points to one."""
    for file in sorted(folder.rglob("*")):
        has_safetensors = any(file.parent.glob("*.safetensors"))
        if file.suffix.lower() in _PICKLES and not has_safetensors:
            raise CheckpointError(f"{file} is a pickle, which can run code; convert it to .safetensors.")
        if file.name.endswith(".index.json"):
            for shard in set(read_json(file).get("weight_map", {}).values()):
                if not str(shard).endswith(".safetensors") and not has_safetensors:
                    raise CheckpointError(f"{file} points to {shard!r}, which is not a .safetensors file.")


def _weight_files(folder: Path, variant: str | None) -> Iterator[Path]:
    index = read_json(folder / "model_index.json")
    for component in sorted(_CLASSES):
        place = folder / component
        named = index.get(component)
        if (
            not place.is_dir()
            or not named
            or "token" in component
            or component in ("image_encoder", "feature_extractor")
        ):
            continue
        files = sorted(place.glob("*.safetensors"))
        wanted = [file for file in files if f".{variant}" in file.name] if variant else []
        plain = [file for file in files if file.name.split("-")[0].count(".") <= 1]
        if not files:
            raise CheckpointError(f"{place} holds no .safetensors weights.")
        yield from wanted or plain or files


def _measure(files: list[Path]) -> CheckpointSize:
    headers = [read_header(file) for file in files]
    parameters = sum(
        math.prod(tensor["shape"]) for header in headers for name, tensor in header.items() if name != "__metadata__"
    )
    return CheckpointSize(len(files), sum(file.stat().st_size for file in files), parameters)


def read_header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, checked against the file's own size.

    Raises:
        CheckpointError: truncated, overlapping, not JSON, or not safetensors at all.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{file} is not a whole safetensors file ({size} bytes); fetch it again.")
        try:
            header = json.loads(stream.read(length))
            end = _check_tensors(header)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{file} has a broken safetensors header: {error}") from error
    if end != size - 8 - length:
        raise CheckpointError(
            f"{file} is truncated or damaged: its header promises {end} bytes of weights, the file has"
            f" {size - 8 - length}; fetch it again."
        )
    return dict(header)


def _check_tensors(header: Mapping[str, Any]) -> int:
    """Check that the tensors fill the data exactly, one after the other; returns where the last one ends."""
    end = 0
    tensors = [(name, tensor) for name, tensor in header.items() if name != "__metadata__"]
    for name, tensor in sorted(tensors, key=lambda item: item[1]["data_offsets"]):
        first, last = tensor["data_offsets"]
        bits = _BITS.get(tensor["dtype"], 8)
        if first != end or last - first != math.prod(tensor["shape"]) * bits // 8:
            raise ValueError(f"tensor {name[:80]!r} does not lie where its shape says")
        end = last
    return end


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's own file.

    Raises:
        CheckpointError: not readable, or not an object.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    return data
