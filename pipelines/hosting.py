"""Keeping networks' weights in host memory of their own, from where they come back to a device without a file."""

from collections.abc import Iterator, Sequence
from itertools import chain
from mmap import mmap

import torch

from pipelines.progress import LoadStage, Progress, untold

CHUNK_BYTES = 64 * 2**20
"""Weights are kept in blocks of this size: pinned memory is handed out in powers of two, so one of the weights' own
sizes each would waste up to half of it, and equal blocks serve the next model as they served the last."""

_ALIGNMENT = 64
"""Bytes; as torch aligns its own, for the widest vector instructions."""


def tensors_of(*networks: torch.nn.Module) -> list[torch.Tensor]:
    """All weights and buffers of some networks, each once."""
    found = (tensor for network in networks for tensor in chain(network.parameters(), network.buffers()))
    return list({id(tensor): tensor for tensor in found}.values())


def bytes_of(*networks: torch.nn.Module) -> int:
    """How much memory the weights and buffers of some networks take together."""
    return sum(tensor.nbytes for tensor in tensors_of(*networks))


def into_host(networks: Sequence[torch.nn.Module], pinned: bool, progress: Progress = untold) -> None:
    """Move networks' weights to blocks of host memory that belong to them alone.

    Weights fresh from a file may still be the file's own pages: on a device they would be read there and then, and a
    file that is overwritten in place would change or break a model at work.

    Args:
        pinned: whether the memory is page-locked, from which CUDA copies several times faster.
        progress: told the stage BUILDING.
    """
    tensors = tensors_of(*networks)
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    for group in _groups(tensors):
        chunk = _block(sum(map(_room, group)), pinned)
        start = 0
        for tensor in group:
            tensor.data = _view(chunk[start : start + tensor.nbytes], tensor).copy_(tensor.data)
            start += _room(tensor)
            done += tensor.nbytes
        progress(LoadStage.BUILDING, done / total)


def _block(size: int, pinned: bool) -> torch.Tensor:
    """Uninitialised bytes; unpinned ones are the system's own pages, so that it gets them back.

    glibc's malloc keeps a block of less than 32 MiB for later and then finds it too small for an aligned one of the
    same size: without end, each model that is read would take new memory.
    """
    if pinned:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return torch.frombuffer(mmap(-1, size), dtype=torch.uint8)


def _groups(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours that share a block; one that is larger than a block has its own."""
    group: list[torch.Tensor] = []
    for tensor in tensors:
        if group and sum(map(_room, group)) + _room(tensor) > CHUNK_BYTES:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


def _room(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _view(room: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Uninitialised values like a tensor's, in the same order in memory (channels_last stays so), in given bytes."""
    values = room.view(tensor.dtype)
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    dense = reach + 1 == tensor.numel()
    return values.as_strided(tensor.shape, tensor.stride()) if dense else values.view(tensor.shape)
