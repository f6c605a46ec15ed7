"""Owns the benchmark's command line: `benchmark.py forward | serving | parity | levers | soak`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__:  # imported by a test, as scripts.benchmark
    from .benchmarking import commands
    from .benchmarking.processes import SYSTEMS, ServerFailed
    from .benchmarking.report import Progress
    from .benchmarking.workload import WORKLOADS
else:
    from benchmarking import commands
    from benchmarking.processes import SYSTEMS, ServerFailed
    from benchmarking.report import Progress
    from benchmarking.workload import WORKLOADS

from pipelines.errors import PipelineError
from pipelines.loading import quiet_libraries

DESCRIPTION = (
    "Measure Darkroom on this machine: the network alone, whole servers under load, pictures, speed levers,"
    " staying power."
)
EXAMPLES = """\
examples:
  scripts/benchmark.py serving --workload uniform --rates 1 --requests 6   a first look, under two minutes
  scripts/benchmark.py serving                       against a locked pipeline and a batching window, 5 minutes
  scripts/benchmark.py forward --full-size sdxl      SDXL's network with random weights, for a GPU
  scripts/benchmark.py COMMAND --help                a command's own options

Each command prints a table and writes its figures into bench-results/. docs/benchmarks.md explains them.
"""

ROWS = (1, 2, 4, 6, 8, 12, 16)
LEVERS = ("channels_last", "compile", "cuda_graphs", "fuse_qkv", "quantize=fp8", "skip_guidance=0.25")
RATES = (0.5, 0.8, 1.1, 1.5)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--models", type=_existing, default=Path("models.toml"), help="catalogue file; default models.toml"
    )
    common.add_argument("--model", help="name in the catalogue; else its default")
    common.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    common.add_argument("--out", type=Path, default=Path("bench-results"), help="folder for JSON files and plots")
    whole = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands_parser = whole.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _forward(commands_parser.add_parser("forward", parents=[common], help="the network alone, by rows and shape"))
    _serving(commands_parser.add_parser("serving", parents=[common], help="whole servers under load, over HTTP"))
    _parity(commands_parser.add_parser("parity", parents=[common], help="the pictures against diffusers' own"))
    _levers(commands_parser.add_parser("levers", parents=[common], help="what each lever of a speed table gives"))
    _soak(commands_parser.add_parser("soak", parents=[common], help="the event loop's lag, memory, a restart's queue"))
    return whole


def _existing(written: str) -> Path:
    """A file that was named must be there: only the default may be absent, for the demo's models then."""
    path = Path(written)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no file {written}")
    return path


def _forward(command: argparse.ArgumentParser) -> None:
    command.add_argument("--full-size", choices=("sdxl", "sd3"), help="the real architecture with random weights")
    command.add_argument("--sizes", type=float, nargs="+", help="factors of the native side")
    command.add_argument("--rows", type=int, nargs="+", default=ROWS, help="row counts to measure")
    command.add_argument("--rounds", type=int, default=5, help="measurements of each; the median counts")
    command.set_defaults(run=commands.forward)


def _serving(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workload", choices=tuple(WORKLOADS), default="mixed", help="alike, or of many kinds")
    command.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="lock is always among them")
    command.add_argument("--rates", type=float, nargs="+", default=RATES, help="multiples of the lock's capacity")
    bound = command.add_mutually_exclusive_group()
    bound.add_argument("--seconds", type=float, default=180.0, help="about how long the sweep takes")
    bound.add_argument("--requests", type=int, help="requests of each run")
    command.add_argument("--seed", type=int, default=0, help="of the trace")
    command.add_argument("--size-factor", type=float, default=1.0, help="scales every side")
    command.add_argument("--step-factor", type=float, default=1.0, help="scales every step count")
    command.set_defaults(run=commands.serving)


def _parity(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, help="else the model's own")
    command.set_defaults(run=commands.parity)


def _levers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--levers", nargs="+", default=LEVERS, help="such as compile, or a=1+b for two together")
    command.add_argument("--full-size", choices=("sdxl", "sd3"), help="the real architecture with random weights")
    command.add_argument("--rows", type=int, nargs="+", default=(2, 8), help="row counts to measure")
    command.add_argument("--rounds", type=int, default=5, help="measurements of each; the least counts")
    command.add_argument("--steps", type=int, help="of the picture; else the model's own")
    command.set_defaults(run=commands.levers)


def _soak(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quick", action="store_true", help="a first look, under a minute")
    command.set_defaults(run=commands.soak)


def main(words: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the process's exit code."""
    arguments = parser().parse_args(words)
    quiet_libraries()
    try:
        arguments.run(arguments, Progress())
    except (PipelineError, ServerFailed, ValueError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    # Ended by SIGTERM, it still stops its servers and removes their folders.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
