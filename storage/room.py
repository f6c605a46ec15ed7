"""Room on the data folder's disk: how much there is, and how much is kept back for work that was accepted."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from storage.errors import DiskNearlyFull

LAST_PART = 0.1
"""Of what is kept back: so much is left to what is begun by then, and to the database."""


@dataclass(frozen=True)
class Room:
    """A disk of which so many bytes are to stay free."""

    folder: Path
    least: int = 0

    @property
    def free(self) -> int:
        """Bytes; none where the disk does not even say."""
        try:
            return shutil.disk_usage(self.folder).free
        except OSError:
            return 0

    @property
    def shortage(self) -> DiskNearlyFull | None:
        """Why no new work may be taken."""
        free = self.free
        return DiskNearlyFull(free, self.least) if free < self.least else None

    @property
    def exhausted(self) -> bool:
        """Whether not even accepted work may be begun."""
        return self.free < LAST_PART * self.least

    def demand(self) -> None:
        """Raises DiskNearlyFull unless new work may be taken."""
        if (shortage := self.shortage) is not None:
            raise shortage
