"""What the server itself refuses or fails of; `server.answers` says what a client is told."""

from pipelines.errors import InvalidRequest


class MissingField(InvalidRequest):
    """A required field was not given."""


class UnknownField(InvalidRequest):
    """A field that this route does not know."""


class UnsupportedField(InvalidRequest):
    """A field of the API that this server cannot honour yet."""


class CrossSite(Exception):
    """A page of another site wants something done here."""


class Unauthenticated(Exception):
    """Nobody knows who asks."""


class Forbidden(Exception):
    """It is known who asks, and that they may not."""


class WrongMediaType(Exception):
    """A body that is not declared as what it is, or as what the route reads."""


class BodyTooLarge(Exception):
    """A body beyond the route's limit."""


class RequestTooSlow(Exception):
    """A request whose body did not arrive in time."""


class ModelUnavailable(Exception):
    """A model that cannot be loaded. Why names files of this machine, so that is for the log and its operator."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The model {name!r} cannot be loaded; the server's log and `darkroom doctor` say why.")


class NoPreview(Exception):
    """There is nothing to be seen of a picture: not yet, not any more, or not by the one who asks."""

    def __init__(self, number: int) -> None:
        super().__init__(f"There is no picture {number} of yours in the making of which anything can be seen now.")


class Interrupted(Exception):
    """The server stops, or its scheduler did: under a job, or before it was taken."""

    def __init__(self, *, taken: bool = True) -> None:
        why = "The server stopped before the job was done" if taken else "The server is stopping and takes no new work"
        super().__init__(f"{why}. Send it again once /ready answers 200.")


class Cancelled(Exception):
    """Somebody cancelled the job that its client waited for."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"Job {job_id} was cancelled.")


class JobFailed(Exception):
    """A job failed before, in the words of that time."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineLost(Exception):
    """The device was lost under a job, which is queued again."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"The device was lost while job {job_id} was under way. The job is queued again, and its pictures will be"
            " in the history once the server has started anew: sending it again would make them twice."
        )
