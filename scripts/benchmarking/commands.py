"""The sub-commands: each measures, prints a table, and writes a JSON file and a plot."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.device import pick_device
from pipelines.families import families
from pipelines.family import Family
from pipelines.levers import Speed

from .models import Model
from .processes import SYSTEMS
from .report import Progress, write_json
from .serving import Plan, measure_serving
from .tables import table
from .workload import WORKLOADS


def forward(arguments: argparse.Namespace, progress: Progress) -> None:
    """Measure the network alone."""
    from .forward import load_family, measure_forward
    from .full_size import build_family
    from .plots import plot_forward

    model = _model(arguments)
    device = pick_device(arguments.device)
    if arguments.full_size:
        progress(f"building {arguments.full_size} with random weights")
        family = build_family(arguments.full_size, device.torch_device, torch.bfloat16)
        factors = arguments.sizes or [1.0]
    else:
        entry = model.entry
        family = load_family(families()[entry.family], entry, device.torch_device, model.dtype)
        factors = arguments.sizes or [0.5, 0.75, 1.0, 1.5]
    results = measure_forward(family, factors, arguments.rows, arguments.rounds, progress)
    for shape in results["shapes"]:
        gigaflops = shape["flops_per_row"] / 1e9
        print(
            f"\n{shape['width']}x{shape['height']}: {gigaflops:.4g} GFLOP a row, VAE decode"
            f" {1000 * shape['decode_seconds']:.3g} ms, knee at {shape['knee']} rows\n"
        )
        print(table(*_forward_table(shape)))
    name = f"forward-{_file_name(results['model'])}" + ("-full-size" if arguments.full_size else "")
    options = {"rows": arguments.rows, "rounds": arguments.rounds, "full_size": arguments.full_size}
    path = write_json(arguments.out, name, device, options, results)
    plot_forward(results, f"{results['model']}, {results['dtype']}, on {device.name}", path.with_suffix(".png"))


def serving(arguments: argparse.Namespace, progress: Progress) -> None:
    """Measure whole servers under load."""
    from .plots import plot_serving

    model = _model(arguments)
    workload = WORKLOADS[arguments.workload](model.entry, arguments.size_factor, arguments.step_factor)
    # The lock's solo times are the measure of everybody's slowdown, so it is always there.
    systems = [system for system in SYSTEMS if system in (*arguments.systems, "lock")]
    plan = Plan(workload, systems, arguments.rates, arguments.seconds, arguments.requests, arguments.seed)
    results = measure_serving(model, plan, progress)
    print(table(*_serving_table(results)))
    if "overhead" in results:
        print("\n" + _overhead_line(results["overhead"]))
    name = f"serving-{_file_name(model.entry.name)}-{workload.name}"
    options = {
        "model": model.entry.name,
        "systems": systems,
        "rates": arguments.rates,
        "seconds": arguments.seconds,
        "requests": arguments.requests,
        "seed": arguments.seed,
        "size_factor": arguments.size_factor,
        "step_factor": arguments.step_factor,
        "classes": {kind.name: kind.share for kind in workload.kinds},
    }
    path = write_json(arguments.out, name, model.device, options, results)
    title = f"{model.entry.name}, {workload.name} workload, on {model.device.name}"
    plot_serving(results, title, path.with_suffix(".png"))


def parity(arguments: argparse.Namespace, progress: Progress) -> None:
    """Measure how far pictures are from diffusers' own."""
    from .parity import measure_parity

    model = _model(arguments)
    results = measure_parity(model, arguments.steps, progress)
    print(table(*_parity_table(results)))
    write_json(
        arguments.out,
        f"parity-{_file_name(model.entry.name)}",
        model.device,
        {"steps": arguments.steps},
        results,
    )


def levers(arguments: argparse.Namespace, progress: Progress) -> None:
    """Measure what each lever gives and costs."""
    from .forward import load_family
    from .full_size import build_family, full_size_entry
    from .levers import Plan, measure_levers

    model = _model(arguments)
    device = pick_device(arguments.device)

    def build(speed: Speed) -> Family:
        if arguments.full_size:
            return build_family(arguments.full_size, device.torch_device, torch.bfloat16, speed)
        entry = replace(model.entry, speed=speed)
        return load_family(families()[entry.family], entry, device.torch_device, model.dtype)

    entry = full_size_entry(arguments.full_size) if arguments.full_size else model.entry
    plan = Plan(arguments.levers, arguments.rows, arguments.rounds, arguments.steps, not arguments.full_size)
    results = measure_levers(entry, build, plan, progress)
    print(table(*_levers_table(results)))
    for lever in results["levers"]:
        if "refused" in lever:
            print(f"\n{lever['lever']}: {lever['refused']}")
    options = {name: getattr(arguments, name) for name in ("levers", "rows", "rounds", "steps", "full_size")}
    name = f"levers-{_file_name(results['model'])}" + ("-full-size" if arguments.full_size else "")
    write_json(arguments.out, name, device, options, results)


def soak(arguments: argparse.Namespace, progress: Progress) -> None:
    """Measure what the device has no part in: the event loop, what jobs leave behind, a restart's queue."""
    from .soak import QUICK, Plan, measure_soak

    model = _model(arguments)
    plan = QUICK if arguments.quick else Plan()
    results = measure_soak(model.catalog, plan, progress)
    print(table(*_lag_table(results)))
    print("\n" + _growth_line(results["growth"], results["limits"]["growth_mb"]) + "\n")
    print(table(*_recovery_table(results)))
    write_json(arguments.out, "soak", model.device, {"quick": arguments.quick}, results)


def _model(arguments: argparse.Namespace) -> Model:
    return Model(Path(arguments.models), arguments.model, arguments.device)


def _file_name(model: str) -> str:
    return model.replace("/", "-")


def _forward_table(shape: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    headers = ["rows", "ms", "ms a row", "rows/s", "% of roofline"]
    return headers, [
        [
            point["rows"],
            1000 * point["seconds"],
            1000 * point["seconds"] / point["rows"],
            point["rows_per_second"],
            100 * point["of_roofline"],
        ]
        for point in shape["rows"]
    ]


def _serving_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    headers = ["x lock", "system", "done", "failed", "images/s", "good/s", "p50 s", "p95 s", "p99 s"]
    headers += ["mean slowdown", "p95", "within 3x", "first step p50 s", "images a forward", "ETA error"]
    return headers, [_serving_row(run) for run in results["runs"]]


def _serving_row(run: dict[str, Any]) -> list[Any]:
    latency, slowdown, first, batch = (run[name] or {} for name in ("latency", "slowdown", "first_step", "batch"))
    return [
        run["multiple"],
        run["system"],
        run["completed"],
        sum(run["errors"].values()),
        run["throughput"],
        run["goodput"],
        latency.get("p50"),
        latency.get("p95"),
        latency.get("p99"),
        slowdown.get("mean"),
        slowdown.get("p95"),
        f"{run['within_slo']:.0%}",
        first.get("p50"),
        batch.get("mean"),
        None if run["eta_error"] is None else f"{run['eta_error']:.0%}",
    ]


def _overhead_line(overhead: dict[str, float]) -> str:
    verdict = "within" if overhead["share"] < overhead["limit"] else "ABOVE"
    return (
        f"Overhead of a solo request: {overhead['share']:.1%} of {overhead['total']:.3f} s, {verdict} the"
        f" {overhead['limit']:.0%} allowed. Text {1000 * overhead['encode']:.1f} ms, forwards"
        f" {1000 * overhead['predict']:.1f} ms, decode {1000 * overhead['decode']:.1f} ms; engine"
        f" {1000 * overhead['engine']:.1f} ms, HTTP, hops, database and files {1000 * overhead['rest']:.1f} ms."
    )


def _levers_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    measured = [lever for lever in results["levers"] if "refused" not in lever]
    counts = [point["rows"] for point in measured[0]["rows"]] if measured else []
    headers = ["lever", "ready s", *(f"{count} rows: ms (gain)" for count in counts), "picture s (gain)"]
    headers += ["PSNR dB", "pixels differ by", "latents by"]
    return headers, [_levers_row(lever) for lever in measured]


def _levers_row(lever: dict[str, Any]) -> list[Any]:
    points = [f"{1000 * point['seconds']:.3g} ({point['gain']:.2f})" for point in lever["rows"]]
    picture = f"{lever['picture']['seconds']:.3g} ({lever['picture']['gain']:.2f})"
    figures = [lever.get(name) for name in ("psnr", "largest_pixel_difference", "largest_latent_difference")]
    return [lever["lever"], lever["ready_seconds"], *points, picture, *figures]


def _lag_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    headers = ["event loop's lag", "requests", "p50 ms", "p99 ms", "max ms", "within the limit"]
    limit = results["limits"]["lag_seconds"]
    return headers, [
        [
            phase["phase"],
            phase["requests"],
            *(1000 * phase[name] for name in ("p50", "p99", "max")),
            _verdict(phase["max"] < limit),
        ]
        for phase in results["lag"]
    ]


def _growth_line(growth: dict[str, Any], limit: float) -> str:
    more = growth["more"]
    verdict = "within" if more["resident_mb"] < limit else "ABOVE"
    return (
        f"{growth['jobs']} jobs, {growth['jobs_per_second']:.1f} a second: {more['resident_mb']:+.1f} MB of memory"
        f" ({growth['resident_mb_before']:.0f} MB before; {verdict} the {limit:.0f} MB allowed),"
        f" {more['files']:+d} open files, {more['tasks']:+d} tasks; lag p99 {1000 * growth['lag_p99']:.1f} ms,"
        f" max {1000 * growth['lag_max']:.1f} ms."
    )


def _recovery_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    headers = ["queued jobs at a restart", "s until all are in line", "in order", "within the limit"]
    limit = results["limits"]["recovery_seconds"]
    return headers, [
        [str(run["queued"]), run["seconds"], _verdict(run["in_order"]), _verdict(run["seconds"] < limit)]
        for run in results["recovery"]
    ]


def _verdict(kept: bool) -> str:
    return "yes" if kept else "NO"


def _parity_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    headers = [
        "sampler",
        "alone",
        "PSNR dB",
        "pixels differ by",
        "crowd: PSNR dB",
        "pixels differ by",
        "latents by",
    ]
    return headers, [
        [
            row["sampler"],
            "bit-equal" if row["alone"]["identical"] else "differs",
            row["alone"]["psnr"],
            row["alone"]["largest_pixel_difference"],
            row["crowd"]["psnr"],
            row["crowd"]["largest_pixel_difference"],
            row["crowd"]["largest_latent_difference"],
        ]
        for row in results["samplers"]
    ]
