"""Choosing where and in which precision models run."""

from contextlib import suppress
from dataclasses import dataclass

import psutil
import torch

from pipelines.errors import DeviceError
from pipelines.state import DeviceFacts


@dataclass(frozen=True)
class Device:
    """A device, its name for people, and the dtype that is quickest on it without harm to the picture."""

    torch_device: torch.device
    name: str
    dtype: torch.dtype
    memory_bytes: int | None

    def dtype_for(self, wanted: str) -> torch.dtype:
        """The torch dtype of a catalogue entry's `dtype`."""
        dtype: torch.dtype = self.dtype if wanted == "auto" else getattr(torch, wanted)
        return dtype

    @property
    def facts(self) -> DeviceFacts:
        """It without torch's types."""
        return DeviceFacts(self.name, self.torch_device.type, _name(self.dtype), self.memory_bytes)

    def __str__(self) -> str:
        memory = f", {self.memory_bytes / 2**30:.0f} GiB" if self.memory_bytes else ""
        return f"{self.name} ({self.torch_device.type}{memory}, {_name(self.dtype)})"


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


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device lacked memory. Only CUDA says so by class; MPS and the CPU raise a RuntimeError in words."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in words)
    )


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
    device = torch.device("cuda:0" if wanted in ("auto", "cuda") else wanted)
    properties = torch.cuda.get_device_properties(device)
    dtype = torch.bfloat16 if properties.major >= 8 else torch.float16
    return Device(device, properties.name, dtype, properties.total_memory)


def _mps(wanted: str) -> Device:
    return Device(torch.device("mps"), "Apple GPU", torch.float16, None)


def _cpu(wanted: str) -> Device:
    threads = torch.get_num_threads()
    return Device(torch.device("cpu"), f"CPU, {threads} threads", torch.float32, None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
