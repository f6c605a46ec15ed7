"""The simulator: the claims that the scheduler's policy is built on, played out without a device."""

from pathlib import Path
from random import Random

import pytest

from scripts.simulate import SYSTEMS, main, parser, simulate
from scripts.simulation.devices import CPU, GPU
from scripts.simulation.servers import Server
from scripts.simulation.traces import TRACES, Request, Wish

BENCHMARKS = (Path(__file__).parent.parent / "docs" / "benchmarks.md").read_text()


def run(trace: str, load: float, system: str, *options: str) -> dict[str, object]:
    return simulate(parser().parse_args(["--requests", "1200", *options]), trace, load, system)


@pytest.fixture(scope="module", params=["gpu", "cpu"])
def mixed(request: pytest.FixtureRequest) -> dict[str, dict]:
    return {name: run("mixed", 0.8, name, "--device", request.param) for name in ("lock", "darkroom")}


def test_at_four_fifths_of_the_locks_load_nobody_waits_as_long(mixed: dict[str, dict]) -> None:
    ours, lock = mixed["darkroom"], mixed["lock"]
    assert ours["slowdown"]["p95"] <= 0.25 * lock["slowdown"]["p95"]
    assert ours["latency"]["mean"] <= 0.7 * lock["latency"]["mean"]
    assert ours["latency"]["p95"] <= lock["latency"]["p95"]
    assert ours["within"] >= 0.8


def test_what_was_promised_is_kept(mixed: dict[str, dict]) -> None:
    assert mixed["darkroom"]["eta_error"] <= 0.1


@pytest.mark.parametrize("trace", TRACES)
def test_past_saturation_the_bound_holds_and_nothing_starves(trace: str) -> None:
    ours = run(trace, 1.4, "darkroom", "--queue-seconds", "20")
    assert ours["refused"]
    assert ours["most_shares"] < (10.5 if trace == "bursty" else 3.6)
    assert ours["slowdown"]["max"] < run(trace, 1.4, "lock")["slowdown"]["max"] / 3


def test_people_who_wait_are_not_held_up_by_batch_jobs() -> None:
    ours, lock = run("bursty", 0.8, "darkroom"), run("bursty", 0.8, "lock")
    assert ours["slowdown_by_priority"]["0"]["p95"] < lock["slowdown_by_priority"]["0"]["p95"] / 10


def test_an_image_alone_takes_as_long_in_each_system() -> None:
    trace = [Request(0.0, Wish(1024, 25))]
    alone = Server(GPU, 16).lock(trace)[0]
    assert alone.latency == pytest.approx(alone.solo)
    assert Server(GPU, 16).window(trace)[0].latency == pytest.approx(alone.solo + 0.5)
    from scripts.simulation.servers import darkroom

    assert Server(GPU, 16).batched(trace, darkroom)[0].latency == pytest.approx(alone.solo)


def test_the_same_seed_gives_the_same_trace() -> None:
    for trace in TRACES.values():
        assert trace(1024, 50, Random(3)) == trace(1024, 50, Random(3))


def test_the_devices_fill_up_with_rows() -> None:
    for profile, native in ((GPU, 1024), (CPU, 128)):
        small = (native // 2) ** 2
        assert profile.step_seconds(small, 8) < 5 * profile.step_seconds(small, 1)
        assert profile.step_seconds(native**2, 8) > 3 * profile.step_seconds(native**2, 1)


def test_it_prints_a_table_and_writes_a_file(capsys: pytest.CaptureFixture[str], tmp_path) -> None:  # noqa: ANN001
    out = tmp_path / "simulated.json"
    assert main(["--trace", "uniform", "--loads", "0.8", "--requests", "40", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for name in SYSTEMS:
        assert f" {name} |" in printed and name in BENCHMARKS, "docs and table call an order alike"
    assert '"goodput"' in out.read_text()
