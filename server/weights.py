"""The hashes of the models' weights: computed in a worker thread from when a model is wanted, kept by identity."""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pipelines.catalog import ModelEntry
from pipelines.errors import NotHashed, PipelineError
from pipelines.hashing import FileHashes, model_hash

log = logging.getLogger(__name__)


class WeightHashes:
    """Which weights each model has. Call it from the event loop only.

    Args:
        cache: the file that remembers hashes, or None; as of `FileHashes`.
    """

    def __init__(self, cache: Path | None) -> None:
        self._files = FileHashes(cache)
        self._known: dict[str, str] = {}  # by identity, so that a model's former weights keep theirs
        self._failures: dict[str, Exception] = {}
        self._told = set[tuple[str, str]]()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()  # one file at a time: the disk gains nothing from more

    def known(self, entry: ModelEntry) -> str | None:
        """The hash of a model's weights as far as it is known now."""
        return self._known.get(entry.identity)

    def begin(self, entry: ModelEntry, *, anew: bool = False) -> None:
        """Have a model's weights hashed, so that the hash is there when its first picture is.

        Args:
            entry: the model.
            anew: it will be loaded again, so the files must be looked at again. If they are still the same,
                that takes no time.
        """
        identity = entry.identity
        if anew:
            self._known.pop(identity, None)
        if identity not in self._known and identity not in self._running:
            self._running[identity] = asyncio.create_task(self._hash(entry))
            self._running[identity].add_done_callback(lambda _: self._running.pop(identity))

    async def of(self, entry: ModelEntry) -> str | None:
        """The hash of a model's weights, waited for; None, and a line in the log, where there can be none."""
        self.begin(entry)
        if running := self._running.get(entry.identity):
            await asyncio.wait({running})
        if entry.identity not in self._known and (failure := self._failures.get(entry.identity)):
            self._tell(entry, failure)
        return self.known(entry)

    async def recall(self, entries: Iterable[ModelEntry]) -> None:
        """Learn the hashes that are remembered from before; nothing is read for it."""
        async with self._turn:
            for entry in entries:
                with suppress(PipelineError):
                    self._known[entry.identity] = await asyncio.to_thread(model_hash, entry, self._files.recall)

    def halt(self) -> None:
        """Give up what is being hashed and begin no more; whoever waits for a hash hears None."""
        self._files.halt()

    async def _hash(self, entry: ModelEntry) -> None:
        async with self._turn:
            try:
                self._known[entry.identity] = await asyncio.to_thread(model_hash, entry, self._files.of)
            except Exception as error:
                self._failures[entry.identity] = error

    def _tell(self, entry: ModelEntry, failure: Exception) -> None:
        """Say why a picture is kept without its model's hash, once for each reason."""
        if isinstance(failure, NotHashed) or (entry.identity, str(failure)) in self._told:
            return
        self._told.add((entry.identity, str(failure)))
        unforeseen = None if isinstance(failure, PipelineError) else failure
        log.warning("pictures of model %s carry no hash of its weights: %s", entry.name, failure, exc_info=unforeseen)
