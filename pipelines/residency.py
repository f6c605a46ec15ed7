"""Which models are on the device and which wait in host memory, each under its budget; the one used longest ago goes.

read -> on the device <-> parked in host memory -> forgotten
"""

import gc
from collections import OrderedDict
from collections.abc import Collection

import torch

from pipelines.budgets import Budgets, gigabytes
from pipelines.catalog import ModelEntry, Offload, name_of
from pipelines.device import Device, is_out_of_memory, synchronize
from pipelines.errors import CheckpointError, NoRoom, NotRead
from pipelines.family import Family
from pipelines.progress import Progress, untold


class Residency:
    """The models in memory. Used on the GPU thread alone.

    Args:
        device: where they compute.
        budgets: the most bytes of weights there, and of parked weights in host memory.
    """

    def __init__(self, device: Device, budgets: Budgets) -> None:
        self._device = device
        self._budgets = budgets
        self._resident: OrderedDict[str, Family] = OrderedDict()  # by identity
        self._parked: OrderedDict[str, Family] = OrderedDict()
        self._bytes: dict[str, int] = {}  # on the device; counted once, since the state is asked for after each step

    @property
    def resident(self) -> tuple[str, ...]:
        """The identities of the models on the device, the one used longest ago first."""
        return tuple(self._resident)

    @property
    def parked(self) -> tuple[str, ...]:
        """The identities of the models in host memory, the one used longest ago first."""
        return tuple(self._parked)

    @property
    def weight_bytes(self) -> dict[str, int]:
        """What each of these models takes on the device, when it is there."""
        return {identity: self._bytes[identity] for identity in (*self._resident, *self._parked)}

    def get(self, entry: ModelEntry) -> Family:
        """A model that was placed before; nothing is loaded here, in the middle of other people's steps."""
        assert entry.identity in self._resident, f"{entry.name} was not loaded"
        return self._resident[entry.identity]

    def forget_prompts(self) -> None:
        """Give up every model's prompt embeddings; those of images in flight stay with them."""
        for family in self._resident.values():
            family.cache.clear()

    def holds(self, entry: ModelEntry) -> bool:
        """Whether a model need not be read."""
        return entry.identity in self._resident or entry.identity in self._parked

    def make_room(self, entry: ModelEntry, needed: int, busy: Collection[str]) -> None:
        """Have idle models leave the device for one of so many bytes, if that is enough.

        Raises:
            CheckpointError: it is larger than the whole budget.
            NoRoom: it does not fit beside the busy models, which stay.
        """
        if needed > self._budgets.vram:
            raise CheckpointError(self._too_large(entry, needed))
        while self._used + needed > self._budgets.vram:
            if not self.leave(busy):
                raise NoRoom(self._no_room(entry))

    def place(
        self, entry: ModelEntry, family: Family | None, busy: Collection[str], progress: Progress = untold
    ) -> None:
        """Have a model on the device, and idle ones make room for it; it becomes the one used last.

        Raises:
            CheckpointError: it does not fit the budget, or the device, at all.
            NoRoom: it does not fit beside the busy models. It is parked until it does, if there is room for that.
            NotRead: no family is given, and the model is neither on the device nor parked.
        """
        identity = entry.identity
        if identity not in self._resident:
            family = self._parked.pop(identity, family)
            if family is None:
                raise NotRead(f"model {entry.name!r} is not in memory any more; it must be read again.")
            self._bytes[identity] = family.device_bytes
            try:
                self.make_room(entry, self._bytes[identity], busy)
                self._put(entry, family, busy, progress)
                self._bytes[identity] = family.device_bytes  # as placed
            except NoRoom:
                self._park(identity, family)
                raise
            self._resident[identity] = family
            self._forget_parked(self._ram_left)
        self._resident.move_to_end(identity)

    def unload(self, identity: str) -> None:
        """Forget a model, wherever it is."""
        self._resident.pop(identity, None)
        self._parked.pop(identity, None)
        self._bytes.pop(identity, None)
        free_memory(self._device.torch_device)

    @property
    def _used(self) -> int:
        return sum(self._bytes[identity] for identity in self._resident)

    @property
    def _ram_left(self) -> int:
        """The bytes of host memory for parked models, beside what the offloaded ones on the device keep there."""
        offloaded = (family for family in self._resident.values() if family.offload is not Offload.NONE)
        return self._budgets.ram - sum(family.weight_bytes for family in offloaded)

    def _put(self, entry: ModelEntry, family: Family, busy: Collection[str], progress: Progress) -> None:
        """Take a model to the device, where memory may lack even within the budget."""
        while not self._placed(family, progress):
            if not self.leave(busy):
                if self._resident:
                    raise NoRoom(self._no_room(entry))
                raise CheckpointError(self._too_large(entry, self._bytes[entry.identity]))

    def _placed(self, family: Family, progress: Progress) -> bool:
        """Whether a model had room on its device. The error, which would keep it alive, is dropped."""
        try:
            family.place(progress)
            synchronize(self._device.torch_device)
            return True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if self._device.own_memory:
            self._go_home(family)  # the part of it that had room
            free_memory(self._device.torch_device)
        return False

    def leave(self, busy: Collection[str]) -> bool:
        """Park or evict the idle model used longest ago; False when none is idle."""
        idle = next((identity for identity in self._resident if identity not in busy), None)
        if idle is None:
            return False
        self._park(idle, self._resident.pop(idle))
        free_memory(self._device.torch_device)
        return True

    def _park(self, identity: str, family: Family) -> None:
        """Keep a model in host memory, in place of those parked longest ago; without room for it, forget it."""
        left = self._ram_left - family.weight_bytes
        if left < 0 or not self._device.own_memory:
            return
        self._forget_parked(left)
        if self._go_home(family):
            self._parked[identity] = family

    def _forget_parked(self, left: int) -> None:
        """Forget those parked longest ago until the others take no more than the bytes left."""
        while self._parked and sum(family.weight_bytes for family in self._parked.values()) > left:
            self._parked.popitem(last=False)

    def _go_home(self, family: Family) -> bool:
        """Whether host memory, too, had room for a model."""
        try:
            family.park(pinned=self._device.torch_device.type == "cuda")
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _too_large(self, entry: ModelEntry, needed: int) -> str:
        smaller = "choose a smaller `dtype` or `variant` in models.toml, or a smaller model"
        offload = ', set offload = "model" or "group"' if self._device.own_memory else ""
        return (
            f"model {entry.name!r} does not fit in the memory of {self._device}: its weights take {gigabytes(needed)},"
            f" and DARKROOM_VRAM_BUDGET comes to {gigabytes(self._budgets.vram)}; {smaller}{offload}, or raise the"
            " budget if memory is left."
        )

    def _no_room(self, entry: ModelEntry) -> str:
        return f"There is no room for model {entry.name!r} beside {', '.join(map(name_of, self._resident))}."


def free_memory(device: torch.device) -> None:
    """Return what nobody refers to any more to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
