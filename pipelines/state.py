"""What an engine tells of itself after each visit to its thread. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.request import BatchKey


@dataclass(frozen=True)
class EngineState:
    """The engine as the event loop knows it.

    Attributes:
        resident: the identities of the models on the device, the one used longest ago first.
        parked: the identities of those kept in host memory, ready to return.
        row_caps: the most rows a key's forward pass is known to have memory for; a key that never lacked any is absent.
        weight_bytes: what each of these models' weights take on the device when it is there, by identity.
    """

    resident: tuple[str, ...] = ()
    parked: tuple[str, ...] = ()
    row_caps: Mapping[BatchKey, int] = field(default_factory=dict)
    weight_bytes: Mapping[str, int] = field(default_factory=dict)
