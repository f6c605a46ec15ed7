"""Bytes and folders that survive a power cut once the call has returned."""

import errno
import os
from pathlib import Path
from uuid import uuid4

from storage.errors import DiskFault, DiskFull

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def make_folder(folder: Path) -> None:
    """Make the folder and what is missing above it, readable by this user only, each entry synced."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Sync the folder's own entries, so that a new or renamed file in it stays."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(target: Path, data: bytes, temporary_folder: Path) -> None:
    """Write `target` so that it appears whole or not at all, and stays.

    After a failed fsync nobody knows what is on the disk, and calling fsync again may wrongly succeed
    (Linux marks the lost pages clean). So the temporary file is thrown away and all is written once more.

    Raises DiskFull when there is no room, DiskFault when the second try fails too.
    """
    try:
        _write_once(target, data, temporary_folder)
    except OSError as error:
        if error.errno not in NO_ROOM:
            _write_again(target, data, temporary_folder)
            return
        raise DiskFull from error


def _write_again(target: Path, data: bytes, temporary_folder: Path) -> None:
    try:
        _write_once(target, data, temporary_folder)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFull from error
        raise DiskFault(error.strerror or type(error).__name__) from error


def _write_once(target: Path, data: bytes, temporary_folder: Path) -> None:
    make_folder(temporary_folder)
    make_folder(target.parent)
    temporary = temporary_folder / f"{uuid4()}.part"
    try:
        _write_synced(temporary, data)
        temporary.rename(target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
