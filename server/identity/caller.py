"""Callers: whose name a request is made in, and what they may do."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from server.errors import Forbidden

LOCAL_OWNER = "local"
"""Everybody, while nobody is asked who they are."""

MAX_CHARACTERS = 255
"""Of an owner's name, and of a key's."""


ORDINARY_PRIORITY = 0


class Role(StrEnum):
    """Users have their own jobs and pictures; operators run the server as well."""

    USER = "user"
    OPERATOR = "operator"


class Permission(StrEnum):
    """What a credential is good for: looking, or changing something as well."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True)
class Caller:
    """One who asks. `key_id` names the credential in figures; after `expires` it is worth nothing."""

    owner_id: str
    role: Role = Role.USER
    permissions: frozenset[Permission] = frozenset(Permission)
    key_id: str | None = None
    expires: datetime | None = None

    @property
    def is_operator(self) -> bool:
        return self.role is Role.OPERATOR

    @property
    def reach(self) -> str | None:
        """Whose jobs the caller may put in order: an operator everybody's, which None stands for."""
        return None if self.is_operator else self.owner_id

    def check_priority(self, priority: int | None, *, to_front: bool = False) -> None:
        """Raises Forbidden for a place before other people's work, unless an operator wants it."""
        if not self.is_operator and (to_front or (priority or 0) > ORDINARY_PRIORITY):
            raise Forbidden(
                f"A priority above {ORDINARY_PRIORITY} and the front of the queue are for operators: they delay others."
                " Ask for a lower priority, or leave it out."
            )


def is_name(text: str) -> bool:
    """Whether somebody may be called this, or something of theirs."""
    return 0 < len(text) <= MAX_CHARACTERS and text.isprintable()


LOCAL = Caller(LOCAL_OWNER, Role.OPERATOR)
"""Whoever asks while authentication is off."""
