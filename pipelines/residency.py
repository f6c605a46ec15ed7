"""Which models are loaded, under a limit on how many; the one used longest ago makes room."""

import gc
from collections import OrderedDict
from collections.abc import Collection

import torch

from pipelines.catalog import ModelEntry
from pipelines.denoising import Family
from pipelines.device import Device
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
        self._loaded: OrderedDict[str, Family] = OrderedDict()

    @property
    def names(self) -> list[str]:
        """The models loaded now, the one used longest ago first."""
        return list(self._loaded)

    def has_room(self, busy: Collection[str]) -> bool:
        """Whether one more model can be loaded while those that are busy stay."""
        return len(set(busy) & set(self._loaded)) < self._limit

    def get(self, entry: ModelEntry, busy: Collection[str] = ()) -> Family:
        """The loaded model, loading it first if need be, in the place of idle ones.

        Raises:
            CheckpointError: it cannot be loaded; whatever was loaded stays usable.
        """
        if entry.name not in self._loaded:
            self._make_room(busy)
            dtype = self._device.dtype_for(entry.dtype)
            self._loaded[entry.name] = families()[entry.family].load(entry, self._device.torch_device, dtype)
        self._loaded.move_to_end(entry.name)
        return self._loaded[entry.name]

    def _make_room(self, busy: Collection[str]) -> None:
        idle = [name for name in self._loaded if name not in busy]
        for name in idle[: max(0, len(self._loaded) - self._limit + 1)]:
            del self._loaded[name]
        free_memory(self._device.torch_device)


def free_memory(device: torch.device) -> None:
    """Return what nobody refers to any more to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
