"""Which models are loaded, under a limit on how many; the one used longest ago makes room."""

import gc
import math
from collections import OrderedDict
from collections.abc import Collection, Iterable

import torch

from pipelines.catalog import ModelEntry
from pipelines.denoising import Family
from pipelines.device import Device, is_out_of_memory
from pipelines.errors import CheckpointError, NoRoom
from pipelines.families import families


class Residency:
    """The loaded models. Used on the GPU thread alone.

    Args:
        device: where they live.
        limit: how many may be loaded at once.
    """

    def __init__(self, device: Device, limit: int) -> None:
        self._device = device
        self._limit = limit
        self._loaded: OrderedDict[str, Family] = OrderedDict()  # by identity

    @property
    def resident(self) -> tuple[str, ...]:
        """The identities of the models loaded now, the one used longest ago first."""
        return tuple(self._loaded)

    def load(self, entry: ModelEntry, busy: Collection[str] = ()) -> None:
        """Load a model if it isn't, and then have idle ones make room for it.

        Raises:
            CheckpointError: it cannot be loaded, or does not fit the device.
            NoRoom: it does not fit beside the busy models, which stay.
        """
        if entry.identity not in self._loaded:
            dtype = self._device.dtype_for(entry.dtype)
            family = families()[entry.family].load(entry, self._device.torch_device, dtype)
            too_large = CheckpointError(
                f"model {entry.name!r} does not fit in the memory of {self._device}; choose a smaller `dtype` or"
                " `variant` in models.toml, or a smaller model."
            )
            if family.weight_bytes > (self._device.memory_bytes or math.inf):
                del family
                raise too_large  # before others are unloaded for nothing
            while len(self._loaded) >= self._limit and self._evict(busy):
                pass
            free_memory(self._device.torch_device)
            while not _placed(family):
                if not self._evict(busy):
                    del family
                    free_memory(self._device.torch_device)
                    if self._loaded:
                        raise NoRoom(
                            f"There is no room for model {entry.name!r} beside {', '.join(_names(self._loaded))}."
                        )
                    raise too_large
            self._loaded[entry.identity] = family
        self._loaded.move_to_end(entry.identity)

    def get(self, entry: ModelEntry) -> Family:
        """A model that was loaded before; nothing is loaded here, in the middle of other people's steps."""
        assert entry.identity in self._loaded, f"{entry.name} was not loaded"
        return self._loaded[entry.identity]

    def unload(self, identities: Collection[str]) -> None:
        """Unload these models, whoever may use them; those that are not loaded are passed over."""
        for identity in identities:
            self._loaded.pop(identity, None)
        free_memory(self._device.torch_device)

    def _evict(self, busy: Collection[str]) -> bool:
        """Unload the idle model used longest ago; False when none is idle."""
        idle = next((model for model in self._loaded if model not in busy), None)
        if idle is None:
            return False
        del self._loaded[idle]
        free_memory(self._device.torch_device)
        return True


def _names(identities: Iterable[str]) -> list[str]:
    return [identity.partition("@")[0] for identity in identities]


def _placed(family: Family) -> bool:
    """Take a model to its device; False when it has no room there. The error, which would keep it alive, is dropped."""
    try:
        family.place()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def free_memory(device: torch.device) -> None:
    """Return what nobody refers to any more to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
