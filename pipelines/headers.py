"""Reading what a checkpoint's files say of themselves: safetensors headers and JSON, believed only when they add up.

The safetensors format is an 8-byte little-endian header length, a JSON header of tensors with dtype, shape and byte
offsets, then the bytes (https://github.com/huggingface/safetensors#format). A file that lies about these is refused
here, before any library maps it into memory.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The bound that the safetensors library itself sets."""

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


def read_header(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file's header, checked against the file's own size.

    Raises:
        CheckpointError: truncated, overlapping, not JSON, or not safetensors at all.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{file} is not a whole safetensors file ({size} bytes); fetch it again.")
        text = stream.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_doubles)
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        end = _check_tensors(tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} has a broken safetensors header ({error}); fetch it again.") from error
    if end != size - 8 - length:
        raise CheckpointError(
            f"{file} is truncated or damaged: its header promises {end} bytes of weights, the file has"
            f" {size - 8 - length}; fetch it again."
        )
    return tensors


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _check_tensors(tensors: Mapping[str, Any]) -> int:
    """Check that the tensors fill the data exactly, one after the other; returns where the last one ends."""
    end = 0
    for name, (first, last, bits) in sorted(_spans(tensors), key=lambda span: span[1]):
        if first != end or (last - first) * 8 != bits:
            raise ValueError(f"tensor {name[:80]!r} does not lie where its shape says")
        end = last
    return end


def _spans(tensors: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Each tensor's first and last byte, and the bits that its shape and dtype come to."""
    for name, tensor in tensors.items():
        first, last = tensor["data_offsets"]
        numbers = [first, last, *tensor["shape"]]
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise ValueError(f"tensor {name[:80]!r} has an offset or a shape that is no size")
        if tensor["dtype"] not in _BITS:
            raise ValueError(f"tensor {name[:80]!r} has the unknown dtype {str(tensor['dtype'])[:20]!r}")
        yield name, (first, last, math.prod(tensor["shape"]) * _BITS[tensor["dtype"]])


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
