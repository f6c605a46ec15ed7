"""A denoiser's forward pass as its levers have it, for every family: padded rows, recorded graphs, chosen kernels."""

from bisect import bisect_left
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.graphs import CudaRecorder, Inputs, Network, Replayed
from pipelines.levers import Speed

BUCKETS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Row counts of a forward pass once it is compiled or recorded; others are padded to the next."""

_KERNELS = {
    "native": None,
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
    "_native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
    "_native_math": SDPBackend.MATH,
}


class Forward:
    """A denoiser's forward pass as its levers have it: kernels chosen, rows padded, graphs replayed.

    Args:
        network: the denoiser itself.
    """

    def __init__(self, network: Network, speed: Speed, device: torch.device) -> None:
        graphs = speed.cuda_graphs and device.type == "cuda"
        self._speed = speed
        self._plain = network
        self._network = Replayed(network, CudaRecorder()) if graphs else network
        self._padded = speed.compile or graphs

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        rows = row_count(inputs)
        with attention(self._speed):
            return self._network(pad(inputs, bucket(rows)) if self._padded else inputs)[:rows]

    def plainly(self, inputs: Inputs) -> torch.Tensor:
        """The rows without padding, graphs, compiled code or a chosen kernel: the same bits whatever ran before."""
        eager: AbstractContextManager[object] = nullcontext()
        if self._speed.compile:
            eager = torch.compiler.set_stance("force_eager")
        with eager:
            return self._plain(inputs)


def attention(speed: Speed) -> AbstractContextManager[object]:
    """The attention kernel that a speed table names, for as long as this is entered."""
    kernel = _KERNELS[speed.attention]
    return nullcontext() if kernel is None else sdpa_kernel(kernel)


def row_count(inputs: Inputs) -> int:
    """How many rows a forward pass has."""
    return len(next(iter(inputs.values())))


def bucket(rows: int) -> int:
    """The bucket that so many rows are padded to."""
    place = bisect_left(BUCKETS, rows)
    return BUCKETS[place] if place < len(BUCKETS) else rows


def pad(inputs: Inputs, rows: int) -> Inputs:
    """Repeat the last row up to so many; a row never reads another, so the copies change nothing."""
    lacking = rows - row_count(inputs)
    if not lacking:
        return inputs
    return {
        name: torch.cat([tensor, tensor[-1:].expand(lacking, *tensor.shape[1:])]) for name, tensor in inputs.items()
    }
