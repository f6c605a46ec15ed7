"""The simulator's command line: the scheduler's policy over traces, against the orders it replaces."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

if __package__:  # imported by a test, as scripts.simulate
    from .benchmarking.tables import table
    from .simulation.devices import DEVICES
    from .simulation.figures import figures, row
    from .simulation.servers import RoundRobin, Server, darkroom, fifo
    from .simulation.traces import TRACES, Request, Wish, poisson
else:
    from benchmarking.tables import table
    from simulation.devices import DEVICES
    from simulation.figures import figures, row
    from simulation.servers import RoundRobin, Server, darkroom, fifo
    from simulation.traces import TRACES, Request, Wish, poisson

DESCRIPTION = (
    "Play the scheduler's own policy over made-up traffic, against four simpler orders. Nothing is computed: the device"
    " is a table of costs, so no GPU and no torch is needed. The whole run takes about a minute;"
    " --trace mixed --loads 0.8 a few seconds."
)

FIFO, IN_TURNS = "steps, first come first served", "steps, shapes in turns"
SYSTEMS = ("lock", "window", FIFO, IN_TURNS, "darkroom")
HEADERS = ("load", "system", "mean s", "p50", "p95", "p99", "max", "mean slowdown", "p95", "max", "within 3x", "good/s")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    whole = argparse.ArgumentParser(description=DESCRIPTION)
    whole.add_argument("--trace", choices=tuple(TRACES), nargs="+", default=tuple(TRACES), help="kinds of traffic")
    whole.add_argument(
        "--loads", type=float, nargs="+", default=(0.5, 0.8, 1.1), help="multiples of the lock's capacity"
    )
    whole.add_argument("--device", choices=tuple(DEVICES), default="gpu", help="whose costs")
    whole.add_argument("--requests", type=int, default=3000, help="images of each run")
    whole.add_argument("--max-rows", type=int, default=16, help="rows of a forward pass")
    whole.add_argument("--queue-seconds", type=float, default=float("inf"), help="darkroom's bound on work in line")
    whole.add_argument("--seed", type=int, default=0, help="of the traces")
    whole.add_argument("--out", type=Path, help="a JSON file for the figures")
    return whole


def simulate(arguments: argparse.Namespace, name: str, load: float, system: str) -> dict[str, Any]:
    """Play one trace at one load through one system."""
    profile, native = DEVICES[arguments.device]
    forecasts = system == "darkroom" and arguments.requests <= 5000
    bound = arguments.queue_seconds if system == "darkroom" else float("inf")
    server = Server(profile, arguments.max_rows, bound, forecasts)
    arrivals = TRACES[name](native, arguments.requests, Random(arguments.seed))

    def solo(wish: Wish) -> float:
        return server.image(Request(0.0, wish), 0).solo

    trace = poisson(arrivals, load, solo, arguments.seed)
    if system in ("lock", "window"):
        images = getattr(server, system)(trace)
    else:
        choose = {FIFO: fifo, IN_TURNS: RoundRobin(), "darkroom": darkroom}[system]
        images = server.batched(trace, choose)
    return {"trace": name, "load": load, "system": system, "refused": server.refused} | figures(images)


def main(words: Sequence[str] | None = None) -> int:
    """Simulate everything asked for and print a table for each trace."""
    arguments = parser().parse_args(words)
    runs = []
    for name in arguments.trace:
        found = []
        for load in arguments.loads:
            for system in SYSTEMS:
                found.append(simulate(arguments, name, load, system))
                print(f"{name}, {load} x lock, {system}", file=sys.stderr)
        print(f"\n{name}, on the {arguments.device}\n")
        print(table(HEADERS, [row(run) for run in found]))
        for run in found:
            if run["system"] == "darkroom":
                print(f"\n{run['load']} x lock: {run['refused']} told to come back, {run['lost']} for good;", end=" ")
                print(f"most shares {run['most_shares']:.3g}; median error of the ETA {run['eta_error']:.1%}")
        runs += found
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
