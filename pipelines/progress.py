"""What loading a model goes through, and how it is told. No torch here."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias


class LoadStage(StrEnum):
    """Where a load stands; DOWNLOADING comes only where something is not on this machine yet."""

    CHECKING = "checking"
    DOWNLOADING = "downloading"
    READING = "reading"
    BUILDING = "building"
    PLACING = "placing"
    MEASURING = "measuring"


Progress: TypeAlias = Callable[[LoadStage, float], None]
"""Told a stage and how much of it is done, 0 to 1, on the thread that does it.

READING counts the bytes of the files, BUILDING those of the networks, PLACING the warm-ups of what is compiled; the
others know only that they began and ended.
"""


def untold(stage: LoadStage, done: float) -> None:
    """For loads that nobody follows."""


_BLOCK_BYTES = 16 * 2**20


def read_through(files: Sequence[Path], progress: Progress) -> None:
    """Read files into the system's cache, where the libraries, which tell of no progress, then find them."""
    total, done = sum(file.stat().st_size for file in files), 0
    block = bytearray(_BLOCK_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(block):
                done += count
                progress(LoadStage.READING, done / total)
    progress(LoadStage.BUILDING, 0.0)
