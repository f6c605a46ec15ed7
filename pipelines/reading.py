"""Reading a model from the disk to host memory, on whichever thread, beside the one that computes."""

import logging
from dataclasses import replace
from threading import get_ident
from typing import Any

import torch

from pipelines.catalog import LINEAR, ModelEntry, Offload
from pipelines.device import Device
from pipelines.errors import CheckpointError
from pipelines.families import families
from pipelines.family import Family
from pipelines.loading import load_preview_decoder
from pipelines.progress import Progress, untold
from pipelines.sources import inspect_entry

log = logging.getLogger(__name__)


class Reader:
    """Gives models that are ready for the device but not on it.

    Each thread that computes gets OpenMP workers of its own, and once there are more of them than cores, libgomp lets
    them sleep at every barrier: each picture takes twice as long. So a thread that reads computes alone. torch keeps
    that number per thread, but also as the first one of every thread yet to come; the thread that makes the reader, the
    one that computes, has its own before that.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._computing_thread = get_ident()
        torch.get_num_threads()  # a thread takes its number when it first asks

    def read(self, entry: ModelEntry, progress: Progress = untold) -> Family:
        """Check, download if need be, and read a model.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        cuda = self._device.torch_device.type == "cuda"
        if get_ident() != self._computing_thread:
            torch.set_num_threads(1)
            if cuda:
                torch.cuda.set_device(self._device.torch_device)  # or pinned memory would wake the first GPU
        dtype = self._device.dtype_for(entry.dtype)
        family = families()[entry.family].load(entry, self._device.torch_device, dtype, progress)
        if entry.preview != LINEAR:
            family.preview_decoder = _preview_decoder(family, progress)
        if self._device.own_memory:
            family.offload = entry.offload
        elif entry.offload is not Offload.NONE:
            log.warning("model %s: offload saves nothing here, where device and host share one memory", entry.name)
        family.prepare()
        try:
            family.park(pinned=cuda, progress=progress)
        except (RuntimeError, OSError) as error:
            raise CheckpointError(
                f"model {entry.name!r} finds no room in the machine's memory: {error}; close other programs, or choose"
                " a smaller `dtype` or `variant` in models.toml."
            ) from None
        return family

    def expected_bytes(self, entry: ModelEntry) -> int:
        """What the weights of a model will take without offload; 0 where it must be downloaded first.

        Raises:
            CheckpointError: what is here of it cannot be loaded.
        """
        # A preview decoder that is at fault costs the previews alone, later.
        size = inspect_entry(replace(entry, preview=LINEAR), families()[entry.family].pipeline_class)
        return 0 if size is None else size.parameters * self._device.dtype_for(entry.dtype).itemsize


def _preview_decoder(family: Family, progress: Progress) -> Any:
    """The decoder that a model's entry names; None where it cannot be had, which costs nobody a picture."""
    try:
        return load_preview_decoder(family.entry, family.vae.config.latent_channels, family.dtype, progress)
    except Exception as error:  # the libraries raise whatever comes
        log.warning("no previews of model %r: %s", family.entry.name, str(error)[:600] or type(error).__name__)
        return None
