"""The errors of the storage package. None of them knows HTTP; the server maps each class to an answer.

StorageError
├── FolderUnusable         the data folder cannot be made or written
├── FolderInUse            another server holds the data folder
├── DatabaseDamaged        not a database, not ours, or it fails SQLite's own check
├── DatabaseTooNew         written by a newer Darkroom
├── DatabaseBusy           somebody else held the database for too long; worth trying again
├── DiskFull               no room left; worth trying again when there is
│   └── DiskNearlyFull     what room is left is kept for work that was accepted before
├── DiskFault              the disk refused to read, write or sync
├── MetadataTooLarge       the text does not fit into a JPEG file
├── NotFound
│   ├── JobNotFound
│   ├── ImageNotFound
│   ├── WebhookNotFound
│   └── MediaNotFound
├── KeyReused              a client's key that stands for another request already
├── ReferenceReused        a reference that stands for another grant of credit already
├── LimitReached           an owner handed in as much as it may
├── NotEnoughCredit        a balance that would fall below zero
├── JobEnded               a job whose place in line is to change has ended
└── IllegalTransition      a job cannot go from where it is to where it was sent
"""

from pathlib import Path

from storage.money import to_amount


class StorageError(Exception):
    """Base of every error that this package raises on purpose."""


class FolderUnusable(StorageError):
    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"The data folder {folder} cannot be used: {reason}. Choose a folder this user may write to.")


class FolderInUse(StorageError):
    def __init__(self, folder: Path, process: str) -> None:
        super().__init__(
            f"The data folder {folder} is in use by process {process}. "
            "Stop that server, or give this one a folder of its own."
        )


class DatabaseDamaged(StorageError):
    def __init__(self, path: Path | None, reason: str) -> None:
        super().__init__(
            f"{path or 'The database'} is damaged ({reason}) and was left as it is: "
            "put a good copy in its place, or move it away to start empty."
        )


class DatabaseTooNew(StorageError):
    def __init__(self, path: Path, revision: str, head: str) -> None:
        super().__init__(
            f"{path} has schema revision {revision}; this version knows none newer than {head}. "
            "Install the newer Darkroom again, or put back the copy made before its migration."
        )


class DatabaseBusy(StorageError):
    def __init__(self) -> None:
        super().__init__("The database is busy: another process has held it for too long. Try again in a moment.")


class DiskFull(StorageError):
    def __init__(self) -> None:
        super().__init__("The disk is full. Free some space; nothing was half written.")


class DiskNearlyFull(DiskFull):
    def __init__(self, free: int, least: int) -> None:
        StorageError.__init__(
            self,
            f"The server's disk has {free / 1e6:.0f} MB free, and {least / 1e6:.0f} MB are kept for work that was"
            " accepted before. Nothing was recorded: free some space, or try again later.",
        )


class DiskFault(StorageError):
    def __init__(self, reason: str) -> None:
        super().__init__(f"The disk failed: {reason}. Look at the disk and the system log before trying again.")


class MetadataTooLarge(StorageError):
    def __init__(self, key: str, limit: int) -> None:
        super().__init__(
            f"The {key} text does not fit: a JPEG file holds at most {limit} bytes of it. Use png or webp, "
            "or a shorter prompt."
        )


class NotFound(StorageError):
    """What was asked for does not exist, or not for the one who asks."""


class JobNotFound(NotFound):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job {job_id}.")


class PicturesDeleted(NotFound):
    """A job whose pictures were all deleted."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"The pictures of job {job_id} were deleted.")


class KeyNotFound(NotFound):
    def __init__(self, key_id: str) -> None:
        super().__init__(f"There is no key {key_id}.")


class ImageNotFound(NotFound):
    def __init__(self, image_id: str) -> None:
        super().__init__(f"There is no image {image_id}.")


class WebhookNotFound(NotFound):
    def __init__(self, webhook_id: str) -> None:
        super().__init__(f"There is no webhook {webhook_id}.")


class MediaNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("There is no such file.")


class KeyReused(StorageError):
    """`told` is what the client knows the key by."""

    def __init__(self, told: str, job_id: str) -> None:
        super().__init__(
            f"{told} was used for another request, job {job_id}. Use a new one for a new request; "
            "each is remembered for 24 hours."
        )


class ReferenceReused(StorageError):
    def __init__(self, reference: str) -> None:
        super().__init__(
            f"The reference {reference[:80]!r} was used for another grant: another owner, amount or note. "
            "Use a new one for a new grant."
        )


class LimitReached(StorageError):
    """`seconds` is how long it will be before the same can be handed in; None for never."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


class NotEnoughCredit(StorageError):
    """Amounts in millionths."""

    def __init__(self, balance: int, needed: int) -> None:
        super().__init__(
            f"The balance is {to_amount(balance):.6g}, and {to_amount(needed):.6g} is needed. "
            "Ask for fewer, smaller or cheaper pictures, or have the operator grant more."
        )
        self.balance = balance


class JobEnded(StorageError):
    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(f"Job {job_id} is {status}; only one that waits or is processed has a place in line.")


class IllegalTransition(StorageError):
    def __init__(self, job_id: str, present: str, wanted: str) -> None:
        super().__init__(f"Job {job_id} is {present}; only {_MAY_BECOME[wanted]}.")


_MAY_BECOME = {
    "pending": "a failed or cancelled one can be tried again",
    "processing": "one that waits can be begun",
    "completed": "one that is processed can be completed",
    "failed": "one that has not ended can fail",
    "cancelled": "one that has not ended can be cancelled",
}
