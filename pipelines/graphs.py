"""Recorded forward passes: for each shape of inputs the network's kernels as one CUDA graph, replayed from then on."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Inputs: TypeAlias = dict[str, torch.Tensor]
"""What a denoiser is called with, by name; the first dimension of each is the rows."""

Network: TypeAlias = Callable[[Inputs], torch.Tensor]
"""One forward pass: inputs of so many rows to a (rows, C, h, w) prediction."""

Record: TypeAlias = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], None], torch.Tensor]]
"""Records work that reads and writes fixed memory: how to do it again, and where its result then lies."""

MAX_RECORDINGS = 64
"""More shapes than this, and the one used longest ago is recorded anew when it returns."""

_WARM_UPS = 2
"""Calls before a recording: libraries allocate their workspaces and choose their kernels in the first ones."""


@dataclass(frozen=True)
class _Recording:
    inputs: Inputs
    replay: Callable[[], None]
    output: torch.Tensor


class Replayed:
    """A network whose every shape is recorded when it is first met, and replayed after that.

    A recording's addresses are fixed, so whoever moves the network's weights drops this and makes another.

    Args:
        network: called on fixed inputs only.
        record: `CudaRecorder()`.
    """

    def __init__(self, network: Network, record: Record) -> None:
        self._network = network
        self._record = record
        self._kept: OrderedDict[Any, _Recording] = OrderedDict()

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        if shape not in self._kept:
            self._kept[shape] = self._recorded(inputs)
        self._kept.move_to_end(shape)
        if len(self._kept) > MAX_RECORDINGS:
            self._kept.popitem(last=False)
        recording = self._kept[shape]
        for name, tensor in inputs.items():
            recording.inputs[name].copy_(tensor)
        recording.replay()
        # A copy: the next replay writes to the same place, and multistep samplers keep what they were given.
        return recording.output.clone()

    def _recorded(self, inputs: Inputs) -> _Recording:
        fixed = {name: tensor.clone() for name, tensor in inputs.items()}
        replay, output = self._record(lambda: self._network(fixed))
        return _Recording(fixed, replay, output)


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory: never two of them run at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                work()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # By thread, for another one may be reading a model into pinned memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = work()
        return graph.replay, output
