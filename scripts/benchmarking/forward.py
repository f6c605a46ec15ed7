"""The network alone: seconds of a forward pass by rows and shape, the knee, and the share of the roofline."""

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from pipelines.denoising import Denoising
from pipelines.errors import PipelineError
from pipelines.family import Family
from pipelines.profiling import count_flops, timed, unguided_images

from .report import Progress
from .statistics import knee
from .workload import scaled_size

WARM_UPS = 2


def load_family(family_class: type[Family], entry: Any, device: torch.device, dtype: torch.dtype) -> Family:
    """A model of the catalogue.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    with torch.inference_mode():
        family = family_class.load(entry, device, dtype)
        family.place()
    return family


@torch.inference_mode()
def measure_forward(
    family: Family, factors: Sequence[float], row_counts: Sequence[int], rounds: int, progress: Progress
) -> dict[str, Any]:
    """Measure every shape.

    Args:
        factors: of the model's native side.
        row_counts: rows of a forward pass.
        rounds: how often each is measured; the median counts. Rounds go over all row counts in turn, so that a
            drift of the machine hits all alike.
    """
    roofline = matrix_product_rate(family.device, family.dtype)
    progress(f"a large matrix product runs at {roofline / 1e12:.3g} TFLOP/s")
    sizes = list(dict.fromkeys(scaled_size(family.entry, factor) for factor in factors))
    shapes = []
    for width, height in sizes:
        shapes.append(_shape(family, width, height, row_counts, rounds, roofline))
        progress(f"{width}x{height}: the knee is at {shapes[-1]['knee']} rows")
    dtype = str(family.dtype).removeprefix("torch.")
    return {"model": family.entry.name, "dtype": dtype, "roofline_flops": roofline, "shapes": shapes}


def _shape(
    family: Family, width: int, height: int, row_counts: Sequence[int], rounds: int, roofline: float
) -> dict[str, Any]:
    images = unguided_images(family, width, height, max(row_counts))
    flops = count_flops(family, images[:1])
    seconds = forward_seconds(family, images, row_counts, rounds)
    best = knee(seconds)
    latents = images[0].latents
    decode = median(timed(lambda: family.decode(latents), family.device) for _ in range(1 + rounds))
    return {
        "width": width,
        "height": height,
        "flops_per_row": flops,
        "decode_seconds": decode,
        "knee": best,
        "rows": [
            {
                "rows": rows,
                "seconds": duration,
                "rows_per_second": rows / duration,
                "of_roofline": flops * rows / duration / roofline,
            }
            for rows, duration in seconds.items()
        ],
    }


def forward_seconds(
    family: Family, images: Sequence[Denoising], row_counts: Sequence[int], rounds: int
) -> dict[int, float]:
    """Median seconds of a forward pass by rows. Row counts that the memory cannot hold are left out."""
    possible = [rows for rows in row_counts if _fits(family, images[:rows])]
    if not possible:
        raise PipelineError("not even one row fits into the device's memory")
    times: dict[int, list[float]] = {rows: [] for rows in possible}
    for _ in range(rounds):
        for rows in possible:
            times[rows].append(timed(partial(family.predict, images[:rows]), family.device))
    return {rows: median(values) for rows, values in times.items()}


def _fits(family: Family, batch: Sequence[Denoising]) -> bool:
    """Warm this row count up; whether the device has the memory for it."""
    try:
        for _ in range(WARM_UPS):
            timed(lambda: family.predict(batch), family.device)
    except torch.OutOfMemoryError:
        return False
    return True


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product: what this device reaches at most in this dtype."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    best = min(timed(lambda: left @ right, device) for _ in range(8))
    return 2 * side**3 / best
