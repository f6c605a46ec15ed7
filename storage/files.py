"""The media folder: pictures and thumbnails as files, written durably, opened safely, swept of orphans."""

import asyncio
import errno
import hashlib
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from storage.durable import write_durably
from storage.errors import MediaNotFound, StorageError
from storage.media import ImageFormat, MediaKind, MediaName

TEMPORARY = "tmp"
SWEEP_AGE = timedelta(hours=1)  # a younger file may be one whose row is about to be written
SWEEP_BATCH = 500
# Nothing there, a symlink, a file where a folder should be, or a socket: none of them is a picture of ours.
NOT_OURS = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO})

KnownIds = Callable[[set[str]], Awaitable[set[str]]]


@dataclass(frozen=True)
class StoredFile:
    """What the picture's file holds: the SHA-256 of its bytes in hexadecimal, and how many they are."""

    sha256: str
    byte_count: int


@dataclass(frozen=True)
class Swept:
    """How many files a sweep removed."""

    temporary: int
    orphaned: int

    def __str__(self) -> str:
        return f"the media folder: {self.temporary} unfinished and {self.orphaned} ownerless files removed"


class MediaFiles:
    """The files beneath `folder/media`. Every method but `sweep` blocks: call it in a thread."""

    def __init__(self, folder: Path) -> None:
        self._root = folder / "media"

    def path_of(self, name: MediaName) -> Path:
        return self._root / name.path

    def save(
        self, image_id: str, created_at: datetime, image: bytes, thumbnail: bytes, format: ImageFormat
    ) -> StoredFile:
        """Write a picture and its thumbnail. Both are on the disk under their names when this returns.

        Raises DiskFull or DiskFault; neither file is left then.
        """
        names = (
            MediaName.of_thumbnail(image_id, created_at),
            MediaName.of_image(image_id, created_at, format),
        )
        try:
            for name, data in zip(names, (thumbnail, image), strict=True):
                write_durably(self.path_of(name), data, self._root / TEMPORARY)
        except StorageError:
            for name in names:
                self.delete(name)
            raise
        return StoredFile(hashlib.sha256(image).hexdigest(), len(image))

    def open(self, name: MediaName) -> tuple[BinaryIO, os.stat_result]:
        """Open a regular file for reading; no component below the media folder may be a symlink.

        Raises MediaNotFound.
        """
        with self._folder_of(name) as folder:
            try:
                # O_NONBLOCK: opening a named pipe must not wait for its writer.
                descriptor = os.open(name.file_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            except OSError as error:
                raise _not_found_or(error) from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise MediaNotFound
        return os.fdopen(descriptor, "rb"), status

    def delete(self, name: MediaName) -> bool:
        """Remove the file; say whether it was there."""
        with suppress(MediaNotFound, FileNotFoundError), self._folder_of(name) as folder:
            os.unlink(name.file_name, dir_fd=folder)
            return True
        return False

    async def sweep(self, known: KnownIds, older_than: timedelta = SWEEP_AGE) -> Swept:
        """Remove old unfinished files, and old pictures of images that `known` does not name.

        Files that are not named as ours are left alone.
        """
        limit = time.time() - older_than.total_seconds()
        temporary = await asyncio.to_thread(self._sweep_temporary, limit)
        orphaned = 0
        names = await asyncio.to_thread(self._old_names, limit)
        for start in range(0, len(names), SWEEP_BATCH):
            batch = names[start : start + SWEEP_BATCH]
            kept = await known({name.image_id for name in batch})
            orphaned += await asyncio.to_thread(self._delete_all, [name for name in batch if name.image_id not in kept])
        return Swept(temporary, orphaned)

    @contextmanager
    def _folder_of(self, name: MediaName) -> Iterator[int]:
        """A descriptor of the file's folder, reached from the media folder one real folder at a time."""
        try:
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
            for part in name.folders:
                descriptor = _descend(descriptor, part)
        except OSError as error:
            raise _not_found_or(error) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _sweep_temporary(self, limit: float) -> int:
        stale = [path for path in _old_files(self._root / TEMPORARY, limit) if path.suffix == ".part"]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def _old_names(self, limit: float) -> list[MediaName]:
        months = ((kind, month) for kind in MediaKind for month in sorted((self._root / kind).glob("*/*/")))
        return [name for kind, month in months for name in _names(kind, month, limit)]

    def _delete_all(self, names: list[MediaName]) -> int:
        return sum(self.delete(name) for name in names)


def _names(kind: MediaKind, month: Path, limit: float) -> Iterator[MediaName]:
    for path in _old_files(month, limit):
        with suppress(MediaNotFound):
            yield MediaName.parse(kind, month.parent.name, month.name, path.name)


def _old_files(folder: Path, limit: float) -> Iterator[Path]:
    """The folder's regular files last written before `limit`, in seconds since 1970."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < limit:
                yield Path(entry.path)


def _descend(parent: int, part: str) -> int:
    try:
        return os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    finally:
        os.close(parent)


def _not_found_or(error: OSError) -> Exception:
    return MediaNotFound() if error.errno in NOT_OURS else error
