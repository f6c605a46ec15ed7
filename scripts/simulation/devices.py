"""The devices that are simulated: SDXL on a large GPU, and the demo model on two CPU cores."""

from pipelines.profile import Profile, curve_of, fit_flops, polynomial

GPU_NATIVE, CPU_NATIVE = 1024, 128

_RATE = 470e12
"""FLOP/s: 60 % of the 790 TFLOP/s in bf16 that a large matrix product reaches on an H100."""

_LEAST_SECONDS = 0.022
"""Of an SDXL UNet's forward pass, however small: its kernels must be launched."""

_SDXL_FLOPS = fit_flops([(512**2, 1.59e12), (768**2, 3.64e12), (1024**2, 6.76e12)])
"""Counted with torch's FlopCounterMode; see docs/benchmarks.md."""


def _filled(flops: float) -> float:
    """Seconds of a pass that waits for launches while it is small and for arithmetic once it is large."""
    return float((_LEAST_SECONDS**4 + (flops / _RATE) ** 4) ** 0.25)


GPU = Profile(
    flops=_SDXL_FLOPS,
    steps=tuple((flops, _filled(flops)) for flops in (1e12 * 1.3**power for power in range(26))),
    encode_seconds=0.012,
    decode_seconds=0.040 / 1024**2,
)
"""SDXL in bf16 on an H100-class GPU: assumed, not measured."""

_CPU_GIGAFLOP = {64: 0.436, 128: 1.718, 192: 4.062}
_CPU_MILLISECONDS = {
    64: {1: 17, 2: 22, 4: 30, 6: 35, 8: 41, 12: 56, 16: 73},
    96: {1: 26, 2: 31, 4: 46, 6: 59, 8: 78, 12: 111, 16: 145},
    128: {1: 37, 2: 47, 4: 80, 6: 99, 8: 129, 12: 184, 16: 247},
    192: {1: 61, 2: 94, 4: 151, 6: 233, 8: 300, 12: 446, 16: 705},
}
"""The demo UNet's forward pass in float32 on two cores of an AMD EPYC, by side and rows, as `benchmark.py forward`
measured it; and what it counted for one row."""

_CPU_FLOPS = fit_flops([(side**2, 1e9 * flops) for side, flops in _CPU_GIGAFLOP.items()])

CPU = Profile(
    flops=_CPU_FLOPS,
    steps=curve_of(
        [
            (polynomial(_CPU_FLOPS, side**2) * rows, milliseconds / 1000)
            for side, row in _CPU_MILLISECONDS.items()
            for rows, milliseconds in row.items()
        ]
    ),
    encode_seconds=0.015,
    decode_seconds=0.026 / 128**2,
)
"""The demo model on a small machine."""

DEVICES = {"gpu": (GPU, GPU_NATIVE), "cpu": (CPU, CPU_NATIVE)}
