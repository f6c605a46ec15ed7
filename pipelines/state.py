"""What an engine tells of itself after each visit to its thread. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipelines.request import BatchKey


@dataclass(frozen=True)
class DeviceFacts:
    """What never changes of the device an engine computes on: its name for people, torch's name of its kind, its dtype.

    `memory_bytes` is None where the device has no memory of its own.
    """

    name: str = "unknown"
    kind: str = "cpu"
    dtype: str = "float32"
    memory_bytes: int | None = None


@dataclass
class Counts:
    """What an engine counts while it works; none ever falls.

    Attributes:
        splits: batches that were halved because the device lacked memory for them.
        prompts_kept: texts whose embedding was there already.
        prompts_encoded: texts that went through the text encoders.
    """

    splits: int = 0
    prompts_kept: int = 0
    prompts_encoded: int = 0

    def copy(self) -> "Counts":
        """How they stand now."""
        return replace(self)


@dataclass(frozen=True)
class EngineState:
    """The engine as the event loop knows it.

    Attributes:
        resident: the identities of the models on the device, the one used longest ago first.
        parked: the identities of those kept in host memory, ready to return.
        row_caps: the most rows a key's forward pass is known to have memory for; a key that never lacked any is absent.
        weight_bytes: what each of these models' weights take on the device when it is there, by identity.
        memory_used: bytes in use, whoever uses them: of a CUDA device; elsewhere of this process. None if unknown.
        counts: how the engine's counts stand.
    """

    resident: tuple[str, ...] = ()
    parked: tuple[str, ...] = ()
    row_caps: Mapping[BatchKey, int] = field(default_factory=dict)
    weight_bytes: Mapping[str, int] = field(default_factory=dict)
    memory_used: int | None = None
    counts: Counts = field(default_factory=Counts)
