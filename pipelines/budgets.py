"""How much memory models may take: what a setting says, measured against what the machine has. No torch here."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

AUTO_VRAM = 0.8
"""Of the device's memory, by default: the rest is for latents, activations and the VAE's decode."""

AUTO_RAM = 0.5
"""Of the machine's memory, by default, for parked models: the rest is for reading one and for other programs."""

RULE = 'like "12GB", "800MB", "80%" or "auto"'
"""How a budget is written, for messages."""

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_WRITTEN = re.compile(r"(\d{1,6}(?:\.\d{1,3})?) ?(%|[MGT]i?B)", re.IGNORECASE)
# What a container may use, where it is less than the machine has (cgroup v2, then v1).
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Budgets:
    """The most bytes that models' weights may take, on the device and, while they are parked, in host memory."""

    vram: int
    ram: int


def budget_bytes(written: str, whole: int, auto: float) -> int:
    """The bytes that a budget comes to.

    Args:
        written: such as "12GB", "800 MB", "80%" or "auto".
        whole: the bytes of the memory that a percentage is of.
        auto: the share of it that "auto" stands for.

    Raises:
        ValueError: it is written in another way.
    """
    if written.strip().lower() == "auto":
        return int(whole * auto)
    return size_bytes(written, whole)


def size_bytes(written: str, whole: int) -> int:
    """The bytes of a size such as "500MB" or "5%" of the whole; "0" is none. Raises ValueError as `budget_bytes`."""
    if written.strip() == "0":
        return 0
    match = _WRITTEN.fullmatch(written.strip())
    if match is None or (match[2] == "%" and float(match[1]) > 100):
        raise ValueError(f"it must be {RULE}, not {written[:40]!r}")
    if match[2] == "%":
        return int(whole * float(match[1]) / 100)
    return int(float(match[1]) * _UNITS[match[2].upper()])


def machine_memory() -> int:
    """The bytes of memory that this process may use: the machine's, or what its container allows."""
    limits = [int(psutil.virtual_memory().total)]
    for file in _LIMITS:
        with suppress(OSError, ValueError):  # not here, or "max"
            limits.append(int(file.read_text()))
    return min(limits)


def gigabytes(count: float) -> str:
    """A number of bytes as people read it."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
