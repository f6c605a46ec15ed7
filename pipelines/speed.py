"""Applying a model's levers to its networks, when they are placed; those of each forward pass are in `forward`."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

import torch

from pipelines.catalog import ModelEntry
from pipelines.device import is_out_of_memory
from pipelines.errors import CheckpointError
from pipelines.forward import BUCKETS
from pipelines.levers import Speed
from pipelines.progress import LoadStage, Progress, untold

log = logging.getLogger(__name__)

WARM_ROWS = 16
"""The largest bucket that a compiled model is tried with when it is loaded."""

TILED_PIXELS = 4 * 1024 * 1024
"""A larger picture is decoded in tiles: the VAE's memory grows with its pixels."""

Capability: TypeAlias = tuple[int, int]
"""CUDA's compute capability."""

FP8_CAPABILITY: Capability = (8, 9)
"""The first CUDA compute capability with fp8 matrix products (Ada; Hopper has 9.0)."""

_RECOMPILE_LIMIT = 64
"""Several models share the code of their blocks, and each brings a version for one row and for more, of each width."""


def keep_compiled(folder: Path) -> None:
    """Have torch keep what it compiles in a folder, for the next start; the operator's own choice of one wins.

    torch reads the place from its environment variable and from nowhere else.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.absolute()))


def check_levers(entry: ModelEntry, device: torch.device, dtype: torch.dtype) -> None:
    """Look whether this machine can do what a model's speed table asks for, before its weights are read.

    It computes nothing, so it may be called on any thread.

    Raises:
        CheckpointError: it cannot; with the remedy.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if entry.speed.quantize is not None:
        _check_fp8(entry, capability, dtype)
    if not has_kernel(entry.speed.attention, device.type, capability, dtype):
        raise CheckpointError(
            f"model {entry.name!r}: attention = {entry.speed.attention!r} does not run on this {device.type} device in"
            f' {str(dtype).removeprefix("torch.")}; write attention = "native" in models.{entry.name}.speed.'
        )
    if entry.speed.cuda_graphs and device.type != "cuda":
        log.info("model %s: cuda_graphs has no effect on a %s device", entry.name, device.type)


def has_kernel(attention: str, device: str, capability: Capability | None, dtype: torch.dtype) -> bool:
    """Whether torch has an attention kernel for a kind of device, by torch's own conditions (`sdp_utils.cpp`)."""
    if attention in ("native", "_native_math"):
        return True
    if capability is None:
        return device == "cpu" and attention == "_native_flash"
    # Both flash kernels on CUDA are for Ampere and newer, in half precision.
    return attention == "_native_efficient" or (capability >= (8, 0) and dtype in (torch.float16, torch.bfloat16))


def _check_fp8(entry: ModelEntry, capability: Capability | None, dtype: torch.dtype) -> None:
    remedy = f"leave quantize out of models.{entry.name}.speed"
    if capability is None or capability < FP8_CAPABILITY:
        has = "is not CUDA" if capability is None else f"has {capability[0]}.{capability[1]}"
        raise CheckpointError(
            f'model {entry.name!r}: quantize = "fp8" needs a CUDA device of compute capability 8.9 or more, and this'
            f" device {has}; {remedy}."
        )
    if dtype != torch.bfloat16:
        raise CheckpointError(f'model {entry.name!r}: quantize = "fp8" computes in bfloat16; {remedy}, or dtype.')
    _fp8(entry.name)


def _fp8(name: str) -> tuple[Callable[..., None], Any]:
    """torchao's function and configuration for fp8, imported only where somebody asks for them.

    Raises:
        CheckpointError: torchao is not installed.
    """
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
    except ImportError as error:
        raise CheckpointError(
            f"model {name!r}: quantize = \"fp8\" needs torchao; install it with pip install 'darkroom[fp8]', or leave"
            f" quantize out of models.{name}.speed."
        ) from error
    return quantize_, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())


def shape_networks(denoiser: Any, blocks: Sequence[str], vae: Any, speed: Speed, device: torch.device) -> None:
    """The levers that change networks themselves, on the CPU still, so that the device never holds both forms.

    Args:
        blocks: the class names of the denoiser's repeated blocks.

    May be called again on the same networks.
    """
    if speed.fuse_qkv:
        _fuse(denoiser)
    # cuDNN's tensor-core convolutions want NHWC, and for NCHW they transpose at both ends. oneDNN packs weights in an
    # order of its own and gains nothing; MPS has its own too.
    if device.type == "cuda" if speed.channels_last is None else speed.channels_last:
        denoiser.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
    vae.use_slicing = speed.vae_slicing
    if speed.compile:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
        denoiser._repeated_blocks = list(blocks)  # diffusers names them of the UNet alone
        # Dynamic from the start: one version for one row and one for more then serve every size and row count.
        denoiser.compile_repeated_blocks(fullgraph=True, dynamic=True)


def _fuse(denoiser: Any) -> None:
    attentions = [module for module in denoiser.modules() if hasattr(module, "fused_projections")]
    if any(module.fused_projections for module in attentions):
        return
    denoiser.fuse_qkv_projections()
    for module in attentions:
        parts = ["to_k", "to_v"] if hasattr(module, "to_kv") else ["to_q", "to_k", "to_v"]
        parts += ["add_q_proj", "add_k_proj", "add_v_proj"] if hasattr(module, "to_added_qkv") else []
        for part in parts:
            delattr(module, part)  # diffusers keeps them beside the fused ones, for unfusing


def vae_dtype(vae: Any, speed: Speed, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that a VAE decodes in, beside a denoiser in `dtype`."""
    if speed.vae_dtype != "auto":
        chosen: torch.dtype = getattr(torch, speed.vae_dtype)
        return chosen
    overflows = dtype == torch.float16 and vae.config.get("force_upcast", False)
    # A VAE is cheap on a CPU, and bfloat16's eight bits of mantissa band its smooth skies.
    return torch.float32 if overflows or device.type == "cpu" else dtype


def quantize(denoiser: Any, blocks: Sequence[str], name: str) -> None:
    """Turn the large linear layers of the repeated blocks to fp8, each row of weights and activations with a scale.

    Modulations (SD3's adaptive norms) stay: they are read once an image, and much depends on them.
    """
    quantize_, config = _fp8(name)
    chosen = {
        id(layer)
        for block in denoiser.modules()
        if type(block).__name__ in blocks
        for path, layer in block.named_modules()
        if isinstance(layer, torch.nn.Linear) and "norm" not in path and _is_large(layer)
    }
    quantize_(denoiser, config, filter_fn=lambda layer, _: id(layer) in chosen)


def _is_large(layer: torch.nn.Linear) -> bool:
    """Worth it, in the multiples of 16 that fp8 products need, and not fp8 already."""
    sides = (layer.in_features, layer.out_features)
    return min(sides) >= 512 and not any(side % 16 for side in sides) and type(layer.weight.data) is torch.Tensor


def warm_up(entry: ModelEntry, attempt: Callable[[int, int, int], object], progress: Progress = untold) -> None:
    """Run a compiled model once in every row bucket at its own size, and at its other native sizes, and say how far.

    Args:
        attempt: runs one forward pass of so many rows at a width and height.
        progress: told PLACING after each.

    Raises:
        CheckpointError: it cannot be compiled.
    """
    began = monotonic()
    plan = list(_warm_ups(entry))
    for number, (rows, width, height) in enumerate(plan, 1):
        failure = None
        try:
            attempt(rows, width, height)
        except Exception as error:
            if not is_out_of_memory(error):
                failure = str(error).strip()[:300]
            elif number == 1:
                raise
            else:
                log.info("model %s: no memory for %d rows at %dx%d", entry.name, rows, width, height)
        if failure is not None:  # outside of the except block, or its frames would keep the weights alive
            raise CheckpointError(
                f"model {entry.name!r} cannot be compiled ({failure}); leave compile out of models.{entry.name}.speed."
                " On a CPU torch needs a C++ compiler, on CUDA Triton."
            )
        log.info("model %s: warm-up %d of %d, %.0f s", entry.name, number, len(plan), monotonic() - began)
        progress(LoadStage.PLACING, number / len(plan))


def _warm_ups(entry: ModelEntry) -> Iterator[tuple[int, int, int]]:
    yield from ((rows, entry.width, entry.height) for rows in BUCKETS if rows <= WARM_ROWS)
    for written in entry.native_sizes:
        width, height = (int(side) for side in written.split("x"))
        if (width, height) != (entry.width, entry.height):
            yield from ((rows, width, height) for rows in (1, 2))


def tiles(speed: Speed, pixels: int) -> bool:
    """Whether a picture of so many pixels is decoded in tiles."""
    return pixels > TILED_PIXELS if speed.vae_tiling is None else speed.vae_tiling
