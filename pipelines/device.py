"""Choosing where and in which precision models run."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import torch

from pipelines.budgets import AUTO_RAM, AUTO_VRAM, Budgets, budget_bytes, gigabytes, machine_memory
from pipelines.errors import DeviceError, DeviceLost
from pipelines.state import DeviceFacts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """A device, its name for people, and the dtype that is quickest on it without harm to the picture.

    `own_memory` says whether its memory is apart from the host's; where it is not, parking a model would save nothing.
    """

    torch_device: torch.device
    name: str
    dtype: torch.dtype
    memory_bytes: int
    own_memory: bool

    def dtype_for(self, wanted: str) -> torch.dtype:
        """The torch dtype of a catalogue entry's `dtype`."""
        dtype: torch.dtype = self.dtype if wanted == "auto" else getattr(torch, wanted)
        return dtype

    @property
    def facts(self) -> DeviceFacts:
        """It without torch's types."""
        return DeviceFacts(self.name, self.torch_device.type, _name(self.dtype), self.memory_bytes)

    def budgets(self, vram: str = "auto", ram: str = "auto") -> Budgets:
        """What the two settings come to here; with one memory for both, nothing is left for parked models.

        Raises:
            ValueError: a setting is not written like "12GB", "800MB", "80%" or "auto".
        """
        parked = budget_bytes(ram, machine_memory(), AUTO_RAM)
        return Budgets(budget_bytes(vram, self.memory_bytes, AUTO_VRAM), parked if self.own_memory else 0)

    def __str__(self) -> str:
        return f"{self.name} ({self.torch_device.type}, {gigabytes(self.memory_bytes)}, {_name(self.dtype)})"


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_used(device: torch.device) -> int | None:
    """Bytes in use: of a CUDA device, whoever uses them; elsewhere of this process. None from a device that is lost."""
    with suppress(RuntimeError):
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            return int(total - free)
        return int(torch.mps.driver_allocated_memory() if device.type == "mps" else psutil.Process().memory_info().rss)
    return None


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Have torch choose only algorithms that give the same bits each time, and fail where there is none.

    MPS knows too few of them to be asked.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type != "mps")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "Invalid buffer size",  # MPS, of a tensor larger than Metal's largest buffer
    "STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN, of their workspaces
    "ALLOCATION_FAILED",  # cuDNN 9, of the device's memory or the host's
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device lacked memory. Only torch's own allocator on CUDA says so by class; the rest say it in words."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)
    )


def responds(device: torch.device) -> bool:
    """Whether a device still computes: after a failed assertion or an illegal access, a CUDA context never does."""
    try:
        torch.ones(1, device=device).add_(1)
        synchronize(device)
    except RuntimeError as error:
        return is_out_of_memory(error)
    return True


def raise_if_lost(error: Exception, device: torch.device) -> None:
    """Raise DeviceLost if an error is one after which the device computes nothing any more."""
    if isinstance(error, RuntimeError) and not is_out_of_memory(error) and not responds(device):
        log.critical("the device was lost", exc_info=error)
        raise DeviceLost(f"The device {device} was lost ({type(error).__name__}); only a new process gets it back.")


def pick_device(wanted: str = "auto") -> Device:
    """The best device there is, or the one asked for.

    Raises:
        DeviceError: the device asked for is not here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(name for name, there in available.items() if there) if wanted == "auto" else wanted.split(":")[0]
    if not available.get(kind):
        there = ", ".join(name for name, here in available.items() if here)
        raise DeviceError(f"device {wanted!r} is not available; there is: {there}.")
    if wanted.startswith("cuda:") and wanted not in (known := [f"cuda:{n}" for n in range(torch.cuda.device_count())]):
        raise DeviceError(f"device {wanted!r} is not here; there is: {', '.join(known)}.")
    return {"cuda": _cuda, "mps": _mps, "cpu": _cpu}[kind](wanted)


def _cuda(wanted: str) -> Device:
    # Of this workspace cuBLAS gives each product its own part, which torch wants before it calls one repeatable. It is
    # read when cuBLAS is first used, so it cannot be left to the first picture that asks.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = torch.device("cuda:0" if wanted in ("auto", "cuda") else wanted)
    properties = torch.cuda.get_device_properties(device)
    dtype = torch.bfloat16 if properties.major >= 8 else torch.float16
    return Device(device, properties.name, dtype, properties.total_memory, own_memory=not properties.is_integrated)


def _mps(wanted: str) -> Device:
    return Device(torch.device("mps"), "Apple GPU", torch.float16, torch.mps.recommended_max_memory(), own_memory=False)


def _cpu(wanted: str) -> Device:
    threads = torch.get_num_threads()
    name = f"CPU, {threads} thread{'' if threads == 1 else 's'}"
    return Device(torch.device("cpu"), name, torch.float32, machine_memory(), own_memory=False)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
