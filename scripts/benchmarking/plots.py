"""The report's pictures: latency against rate, and seconds against rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

# Okabe and Ito's palette, which colour-blind people can tell apart (https://jfly.uni-koeln.de/color/).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SYSTEM_COLOURS = {"darkroom": PALETTE[0], "lock": PALETTE[1], "window": PALETTE[2]}
INK = "#333333"
SIZE = (9.0, 4.2)
RESOLUTION = 160


def plot_serving(results: Mapping[str, Any], title: str, path: Path) -> None:
    """Latency (median and 95th percentile) and goodput of each system against the rate of arrivals."""
    figure, (latency, goodput) = _figure(title, ratios=(3, 2))
    for system in dict.fromkeys(run["system"] for run in results["runs"]):
        runs = [run for run in results["runs"] if run["system"] == system and run["latency"]]
        colour = SYSTEM_COLOURS[system]
        rates = [run["rate"] for run in runs]
        for percent, line, marker in (("p50", "-", "o"), ("p95", "--", "s")):
            values = [run["latency"][percent] for run in runs]
            latency.plot(rates, values, line, color=colour, marker=marker, markersize=4, label=f"{system}, {percent}")
        goodput.plot(rates, [run["goodput"] for run in runs], "-o", color=colour, markersize=4, label=system)
    latency.set_yscale("log")
    for formatter in (latency.yaxis.set_major_formatter, latency.yaxis.set_minor_formatter):
        formatter(StrMethodFormatter("{x:g}"))
    for axes in (latency, goodput):
        axes.axvline(results["lock_capacity"], color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("requests a second")
        axes.set_xlim(left=0)
    latency.text(
        results["lock_capacity"],
        0.98,
        " lock is full",
        transform=latency.get_xaxis_transform(),
        va="top",
        fontsize=8,
    )
    latency.set_ylabel("latency in seconds")
    goodput.set_ylabel("pictures a second within 3x their solo time")
    goodput.set_ylim(bottom=0)
    for axes in (latency, goodput):
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_forward(results: Mapping[str, Any], title: str, path: Path) -> None:
    """Seconds of a forward pass and throughput against rows, one line a shape, each knee ringed."""
    figure, (time, throughput) = _figure(title, ratios=(1, 1))
    row_counts = sorted({point["rows"] for shape in results["shapes"] for point in shape["rows"]})
    for shape, colour in zip(results["shapes"], PALETTE * len(results["shapes"]), strict=False):
        label = f"{shape['width']}x{shape['height']}"
        rows = [point["rows"] for point in shape["rows"]]
        at = rows.index(shape["knee"])
        for axes, values in (
            (time, [1000 * point["seconds"] for point in shape["rows"]]),
            (throughput, [point["rows_per_second"] for point in shape["rows"]]),
        ):
            axes.plot(rows, values, "-o", color=colour, markersize=3, label=f"{label}, knee at {shape['knee']}")
            axes.plot(rows[at], values[at], "o", color=colour, markersize=10, markerfacecolor="none")
    for axes, name in ((time, "milliseconds of a forward pass"), (throughput, "rows a second")):
        axes.set_xlabel("rows")
        axes.set_xticks(row_counts)
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    time.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _figure(title: str, ratios: Sequence[int]) -> tuple[Figure, Sequence[Axes]]:
    figure, axes = pyplot.subplots(1, 2, figsize=SIZE, layout="constrained", width_ratios=ratios)
    figure.suptitle(title, fontsize=10, color=INK)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25, linewidth=0.6)
        each.tick_params(colors=INK, labelsize=8)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=RESOLUTION)
    pyplot.close(figure)
