"""The catalogue in force: models.toml followed while the server runs, the last good one kept when an edit is broken."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pipelines.catalog import Catalog, Look, ModelEntry
from pipelines.errors import CatalogError, CheckpointError, PipelineError
from pipelines.families import families, family_facts
from pipelines.models_toml import load_catalog, look
from pipelines.sources import inspect_entry
from server.hub.mappings import check_mappings

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the file. An edit counts when two in a row saw the same, so that a half-written one does not."""


class UnusableCheckpoint(CatalogError):
    """An edit names a checkpoint that cannot be loaded. Why may name any folder of this machine: `told` does not."""

    def __init__(self, name: str, error: CheckpointError) -> None:
        super().__init__(f"models.{name}: {error}")
        self.told = f"models.{name}: its checkpoint cannot be used; the server's log and `darkroom doctor` say why."


@dataclass(frozen=True)
class Fault:
    """Why models.toml cannot be used, for the log, and since when."""

    file: Path
    error: Exception
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def message(self) -> str:
        return str(self.error)

    @property
    def told(self) -> str:
        """The same for whoever may ask: it names the place in the file, and no folder of this machine."""
        if isinstance(self.error, UnusableCheckpoint):
            return self.error.told
        folder = self.file.parent
        told = self.message.removeprefix(f"{self.file}: ").replace(str(self.file), self.file.name)
        # The root and the present folder stand in any text; they tell nothing.
        return told if folder in (Path("/"), Path()) else told.replace(str(folder), "its folder")


class Catalogue:
    """Owns the present catalogue and what is wrong with the file it comes from. Used on the event loop only.

    Args:
        catalog: as it was read at the start. One that was not read from a file stays for ever.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.present = catalog
        self.fault: Fault | None = None
        self._offered = catalog.identities

    @property
    def retired(self) -> frozenset[str]:
        """The identities of all models that were offered and no longer are."""
        return self._offered - self.present.identities

    async def changes(self) -> AsyncIterator[Catalog]:
        """Follow the file; each time that another catalogue is in force, the former one is given."""
        if (file := self.present.file) is None:
            return
        read = before = self.present.seen
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            seen = await asyncio.to_thread(look, file)
            if seen == before and seen != read:
                former = self.present
                if await self._read(file, seen):
                    read = seen
                if self.present is not former:
                    yield former
            before = seen

    async def _read(self, file: Path, seen: Look) -> bool:
        """Read the file as it was seen; False, and nothing is done, when it changed meanwhile."""
        failure = None
        try:
            catalog = await asyncio.to_thread(load_catalog, file, family_facts())
            check_mappings(catalog)
            await asyncio.to_thread(_check_checkpoints, catalog, self.present)
        except Exception as error:
            failure = error
        if await asyncio.to_thread(look, file) != seen:
            return False
        if failure is None:
            self._adopt(catalog)
        else:
            self._refuse(file, failure)
        return True

    def _adopt(self, catalog: Catalog) -> None:
        log.info("%s was read again: %s", catalog.file, _difference(self.present, catalog))
        self._offered |= catalog.identities
        self.present, self.fault = catalog, None

    def _refuse(self, file: Path, failure: Exception) -> None:
        """Keep what is in force. The same error saved again is the same fault."""
        if self.fault is not None and self.fault.message == str(failure):
            return
        self.fault = Fault(file, failure)
        unforeseen = None if isinstance(failure, PipelineError) else failure
        log.error("models.toml was changed and cannot be used; the former one holds: %s", failure, exc_info=unforeseen)


def _check_checkpoints(new: Catalog, former: Catalog) -> None:
    """Refuse an edit that points a model to a checkpoint on this machine which is not there or not whole.

    A model that points where it did is left alone: what became of its files is no matter of the edit.

    Raises:
        UnusableCheckpoint
    """
    for name, entry in new.entries.items():
        if name in former.entries and _places(entry) == _places(former.entries[name]):
            continue
        try:
            inspect_entry(entry, families()[entry.family].pipeline_class)
        except CheckpointError as error:
            raise UnusableCheckpoint(name, error) from error


def _places(entry: ModelEntry) -> tuple[str | None, ...]:
    return entry.source, entry.config, entry.vae, entry.preview


def _difference(old: Catalog, new: Catalog) -> str:
    """What an edit comes to, for the log."""
    both = [name for name in new.entries if name in old.entries]
    kinds = {
        "added": [name for name in new.entries if name not in old.entries],
        "changed": [name for name in both if new.entries[name] != old.entries[name]],
        "removed": [name for name in old.entries if name not in new.entries],
        "default": [new.default] if new.default != old.default else [],
        "changed hub events": [type for type in {**old.hub, **new.hub} if old.hub.get(type) != new.hub.get(type)],
    }
    told = [f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names]
    return "; ".join(told) or "nothing changed"
