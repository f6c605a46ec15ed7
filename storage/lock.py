"""The claim on a data folder: one server at a time, released by the kernel even after kill -9."""

import fcntl
import os
from pathlib import Path
from typing import Self

from storage.durable import make_folder
from storage.errors import FolderInUse, FolderUnusable

LOCK_NAME = "lock"


class FolderLock:
    """An exclusive flock on `folder/lock`, whose content is the holder's process id."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path) -> Self:
        """Make the folder if need be and claim it. Raises FolderInUse or FolderUnusable."""
        try:
            make_folder(folder)
            descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise FolderUnusable(folder, error.strerror or type(error).__name__) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            process = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            raise FolderInUse(folder, process or "unknown") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return cls(descriptor)

    def release(self) -> None:
        """Give the folder up. The file stays: removing it would let two servers lock two different files."""
        os.close(self._descriptor)
