"""What weights are called by their content: the SHA-256 of a model's files, each of them read once. No torch here."""

import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec

from pipelines.catalog import ModelEntry
from pipelines.errors import CheckpointError, NotHashed
from pipelines.sources import stamp_of, used_weights

log = logging.getLogger(__name__)

CACHE_NAME = "hashes.json"
"""The file in the data folder that remembers the hashes of weights."""

_CHUNK_BYTES = 4 * 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's hash, and how the file looked when it was read."""

    size: int
    mtime_ns: int
    sha256: Annotated[str, msgspec.Meta(pattern=f"^{_SHA256.pattern}$")]

    def is_of(self, status: os.stat_result) -> bool:
        return (self.size, self.mtime_ns) == (status.st_size, status.st_mtime_ns)


class FileHashes:
    """The SHA-256 of files, remembered by path, size and time of change. For one thread at a time, but for `halt`.

    Args:
        cache: the file that remembers them beyond this process; None for none. One that is damaged or cannot be
            written costs time and nothing else.
    """

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache
        self._known: dict[str, _Known] = {}
        self._halted = threading.Event()

    def halt(self) -> None:
        """Read no further; whatever is being read is given up."""
        self._halted.set()

    def recall(self, file: Path) -> str:
        """A file's hash, if it is known without reading it.

        Raises:
            NotHashed: it is not.
        """
        file = file.resolve()
        if file.parent.name == "blobs" and _SHA256.fullmatch(file.name):
            return file.name  # in the hub's cache, large files bear their hash as their name
        status = file.stat()
        known = self._known.get(str(file))
        if known is None or not known.is_of(status):
            known = self._read_cache().get(str(file))
        if known is None or not known.is_of(status):
            raise NotHashed(f"{file} was not hashed yet.")
        self._known[str(file)] = known
        return known.sha256

    def of(self, file: Path) -> str:
        """A file's hash; it is read only if it must be.

        Raises:
            NotHashed: hashing was halted.
            CheckpointError: the file changed while it was read.
            OSError: it cannot be read.
        """
        try:
            return self.recall(file)
        except NotHashed:
            known = self._read(file)
        self._known[str(file.resolve())] = known
        self._write_cache()
        return known.sha256

    def _read(self, file: Path) -> _Known:
        digest, buffer = sha256(), memoryview(bytearray(_CHUNK_BYTES))
        with file.open("rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            while (count := stream.readinto(buffer)) and stream.tell() <= status.st_size:
                if self._halted.is_set():
                    raise NotHashed(f"the hashing of {file} was halted.")
                digest.update(buffer[:count])
            known = _Known(status.st_size, status.st_mtime_ns, digest.hexdigest())
            if not known.is_of(os.fstat(stream.fileno())):
                raise CheckpointError(f"{file} changed while it was hashed.")
        return known

    def _read_cache(self) -> dict[str, _Known]:
        """What the file remembers; nothing where it is not there or damaged."""
        if self._cache is None:
            return {}
        try:
            return msgspec.convert(json.loads(self._cache.read_bytes()), dict[str, _Known])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
            log.warning("%s is not used: %s", self._cache, error)
            return {}

    def _write_cache(self) -> None:
        """Add what is known here to the file, which another process may have written to as well."""
        if self._cache is None:
            return
        remembered = {path: msgspec.to_builtins(known) for path, known in (self._read_cache() | self._known).items()}
        try:
            _replace(self._cache, json.dumps(remembered, indent=1, sort_keys=True).encode())
        except OSError as error:
            log.warning("%s cannot be written, so weights are hashed again after a restart: %s", self._cache, error)


def model_hash(entry: ModelEntry, hash_of: Callable[[Path], str]) -> str:
    """The SHA-256 that names the weights of a model, in 64 hexadecimal digits.

    A single file's is its own; its first ten digits are AUTOMATIC1111's "Model hash". A folder's is that of what
    `sha256sum` would print for its weight files, in the order of their names.

    Args:
        entry: the model, as models.toml has it.
        hash_of: a file's hash: `FileHashes.of` or `FileHashes.recall`.

    Raises:
        CheckpointError: files are missing or cannot be read, or are others than when models.toml was read.
        NotHashed: as of `hash_of`.
    """
    try:
        _check_stamp(entry)
        hashes = {name: hash_of(file) for name, file in sorted(used_weights(entry).items())}
        _check_stamp(entry)
    except OSError as error:
        raise CheckpointError(f"the weights of model {entry.name!r} cannot be read: {error}") from error
    if entry.single_file:
        return hashes.popitem()[1]
    return sha256("".join(f"{digits}  {name}\n" for name, digits in hashes.items()).encode()).hexdigest()


def _check_stamp(entry: ModelEntry) -> None:
    """Nobody knows whether a model was loaded before or after its files changed."""
    if stamp_of(entry) != entry.stamp:
        raise CheckpointError(
            f"the files of model {entry.name!r} changed since models.toml was read; save it again, and they are loaded."
        )


def _replace(file: Path, data: bytes) -> None:
    """Write a file so that whoever reads it sees the old or the new, never a part."""
    descriptor, name = tempfile.mkstemp(prefix=f"{file.name}.", suffix=".part", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        os.replace(name, file)
    except OSError:
        with suppress(OSError):
            os.unlink(name)
        raise
