"""The local pass: by it, programs of whoever may read the data folder reach the server that uses it, as operators.

It is drawn anew at each start, and readable by this user only; who can read it could read the database as well.
"""

import json
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from storage.durable import make_folder

NAME = "server.json"


@dataclass(frozen=True)
class LocalPass:
    """Where the server answers, and what it takes for an operator's credential."""

    url: str
    token: str = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> "LocalPass | None":
        """The pass of the server that uses this folder; None if none does, or if it is not ours to read."""
        try:
            return cls(**json.loads((folder / NAME).read_text()))
        except (OSError, ValueError, TypeError):
            return None


def write_pass(folder: Path, url: str) -> LocalPass:
    """Draw a pass and write it down, in place of that of an earlier start."""
    new = LocalPass(url, secrets.token_urlsafe())
    make_folder(folder)
    unfinished = folder / f"{NAME}.new"
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(new), file)
    unfinished.rename(folder / NAME)
    return new


def remove_pass(folder: Path) -> None:
    """The server stops. A pass that cannot be removed is as one that a killed server left."""
    with suppress(OSError):
        (folder / NAME).unlink()
