"""Offloading: a model's networks take turns on a small device, their weights at home in host memory meanwhile."""

from collections.abc import Sequence
from typing import Any

import torch

from pipelines.hosting import bytes_of, tensors_of


class Turns:
    """One model's networks, of which only the one at work is on the device.

    A network's turn begins when it, or a direct part of it (a VAE is entered by its decoder), is called, and ends when
    another's begins: between two steps the denoiser stays. Nothing is copied back, since weights never change.

    Args:
        networks: with their weights in host memory, pinned where the device is a CUDA one.
    """

    def __init__(self, networks: Sequence[torch.nn.Module], device: torch.device) -> None:
        self._device = device
        self._at_work: torch.nn.Module | None = None
        self._home: list[tuple[torch.Tensor, torch.Tensor]] = []  # of the one at work: each weight and its host copy
        for network in networks:
            for part in (network, *network.children()):
                part.register_forward_pre_hook(lambda _, __, network=network: self.enter(network))

    def enter(self, network: torch.nn.Module) -> None:
        """Bring a network to the device, in place of the one before."""
        if self._at_work is network:
            return
        self.leave()
        try:
            for tensor in tensors_of(network):
                self._home.append((tensor, tensor.data))
                tensor.data = tensor.data.to(self._device, non_blocking=True, copy=True)
        except BaseException:
            self.leave()
            raise
        self._at_work = network

    def leave(self) -> None:
        """Let the network at work go home."""
        for tensor, host in self._home:
            tensor.data = host
        self._home = []
        self._at_work = None


def stream_leaves(denoiser: Any, device: torch.device, turns: Turns) -> None:
    """Bring each layer of a network to the device for as long as it computes (diffusers' group offloading).

    With CUDA the next layer travels on a stream of its own meanwhile. The networks that take turns leave first.
    """
    from diffusers.hooks import apply_group_offloading

    denoiser.register_forward_pre_hook(lambda _, __: turns.leave())
    streams = device.type == "cuda"
    apply_group_offloading(
        denoiser, onload_device=device, offload_type="leaf_level", use_stream=streams, record_stream=streams
    )


def largest_layer(network: torch.nn.Module) -> int:
    """The bytes of a network's largest layer."""
    return max(bytes_of(part) for part in network.modules() if not list(part.children()))
