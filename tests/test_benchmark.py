"""The benchmark: its arithmetic is right, and each sub-command measures tiny checkpoints for real."""

import asyncio
import json
import multiprocessing
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from pipelines.catalog import Catalog
from pipelines.families import family_facts
from pipelines.models_toml import load_catalog
from pipelines.profiling import count_flops, unguided_images
from pipelines.request import Wishes, settle
from pipelines.samplers import samplers_for
from scripts.benchmark import main
from scripts.benchmarking import full_size, soak
from scripts.benchmarking.baselines import Window
from scripts.benchmarking.client import play
from scripts.benchmarking.models import Model
from scripts.benchmarking.observing import Observer
from scripts.benchmarking.overhead import split
from scripts.benchmarking.parity import psnr
from scripts.benchmarking.serving import Plan
from scripts.benchmarking.statistics import Served, knee, percentile, slowdowns, summarize
from scripts.benchmarking.tables import table
from scripts.benchmarking.workload import Workload, mixed, uniform


@pytest.mark.parametrize("percent", [0, 1, 50, 95, 99, 100])
@pytest.mark.parametrize("values", [[3.0], [2.0, 1.0], [5.0, 1.0, 4.0, 1.0, 3.0, 9.0, 2.0]])
def test_percentiles_equal_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_the_knee_is_the_fewest_rows_within_five_per_cent_of_the_best_throughput() -> None:
    assert knee({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.8, 16: 3.7}) == 8  # 4.4 rows a second is the best
    assert knee({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.95, 16: 3.9}) == 4  # 4.0 is within 5 % of 4.1
    assert knee({1: 1.0, 2: 2.0, 4: 4.0}) == 1


def test_a_run_is_summed_up_from_when_requests_were_due() -> None:
    served = [
        Served("small", 1, due=10.0, done=12.0, first_step=10.5),
        Served("small", 2, due=11.0, done=15.0, first_step=12.5),
        Served("large", 3, due=12.0, done=20.0),
        Served("large", 4, due=13.0, error="HTTP 503"),
    ]
    solo = {"small": 1.0, "large": 4.0}
    assert slowdowns(served, solo) == [2.0, 4.0, 2.0]
    summary = summarize(served, solo, began=10.0)
    assert (summary["requests"], summary["completed"], summary["errors"]) == (4, 3, {"HTTP 503": 1})
    assert summary["throughput"] == pytest.approx(0.3)
    assert summary["goodput"] == pytest.approx(0.2)  # the second took four times its solo time
    assert summary["within_slo"] == pytest.approx(0.5)
    assert summary["latency"]["p50"] == pytest.approx(4.0)
    assert summary["slowdown"]["mean"] == pytest.approx(8 / 3)
    assert summary["first_step"]["mean"] == pytest.approx(1.0)


def test_a_run_without_a_picture_is_summed_up_too() -> None:
    summary = summarize([Served("small", 1, due=1.0, error="unfinished")], {"small": 1.0}, began=1.0)
    assert (summary["throughput"], summary["latency"], summary["slowdown"]) == (0.0, None, None)


def test_a_trace_is_the_same_for_a_seed_and_another_rate_only_stretches_it(catalog: Catalog) -> None:
    workload = mixed(catalog.resolve("tiny-sdxl"))
    trace = workload.trace(2.0, 50, seed=3)
    assert trace == workload.trace(2.0, 50, seed=3)
    assert trace != workload.trace(2.0, 50, seed=4)
    faster = workload.trace(4.0, 50, seed=3)
    assert [arrival.body for arrival in faster] == [arrival.body for arrival in trace]
    assert [2 * arrival.at for arrival in faster] == pytest.approx([arrival.at for arrival in trace])
    assert len({arrival.body["seed"] for arrival in trace}) == 50


def test_arrivals_are_poisson_with_the_workloads_shares(catalog: Catalog) -> None:
    workload = mixed(catalog.resolve("tiny-sdxl"))
    trace = workload.trace(5.0, 8000)
    gaps = np.diff([arrival.at for arrival in trace])
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() == pytest.approx(0.2, rel=0.05)  # an exponential's deviation is its mean
    assert sum(kind.share for kind in workload.kinds) == pytest.approx(1)
    for kind in workload.kinds:
        share = sum(arrival.kind == kind.name for arrival in trace) / len(trace)
        assert share == pytest.approx(kind.share, abs=0.02)


def test_the_mixed_workload_is_scaled_to_the_model(catalog: Catalog) -> None:
    kinds = mixed(catalog.resolve("tiny-sdxl"), 2.0, 0.2).kinds
    assert [kind.name for kind in kinds] == [
        "32x32 4 steps",
        "48x48 4 steps",
        "64x64 5 steps",
        "96x96 7 steps",
        "64x64 1 steps unguided",
    ]
    assert uniform(catalog.resolve("tiny-sdxl")).kinds[0].name == "32x32 4 steps"


def test_runs_are_bounded_by_seconds_or_by_requests() -> None:
    nothing = Workload("nothing", ())
    assert Plan(nothing, "abc", [0.5, 1.5], seconds=60).count(0.5, capacity=2.0) == 10
    assert Plan(nothing, "abc", [0.5, 1.5], seconds=60).count(1.5, capacity=2.0) == 20
    assert Plan(nothing, "abc", [0.5], seconds=60, requests=7).count(0.5, capacity=2.0) == 7


def test_a_requests_time_is_split_without_a_rest_unaccounted() -> None:
    seconds = {"encode": 1.0, "predict": 5.0, "decode": 1.0, "engine.step": 5.5, "engine.encode": 1.0}
    parts = split(10.0, seconds | {"engine.finish": 1.5})
    assert parts["engine"] == pytest.approx(1.0)
    assert parts["rest"] == pytest.approx(2.0)
    assert parts["share"] == pytest.approx(0.3)


def test_psnr_is_infinite_for_equal_pictures() -> None:
    picture = np.zeros((2, 2), dtype=np.int32)
    assert psnr(picture, picture) == float("inf")
    assert psnr(picture, picture + 255) == pytest.approx(0)


def test_a_table_is_aligned() -> None:
    assert table(["name", "s"], [["a", 1.23456], ["b", None]]).splitlines() == [
        "| name |    s |",
        "| ---- | ---: |",
        "| a    | 1.23 |",
        "| b    |    - |",
    ]


@pytest.mark.parametrize(("name", "teraflops"), [("sdxl", 6.761), ("sd3", 8.904)])
def test_full_size_models_do_the_work_of_the_real_ones(name: str, teraflops: float) -> None:
    family = full_size.build_family(name, torch.device("meta"), torch.bfloat16)
    with torch.inference_mode():
        images = unguided_images(family, 1024, 1024, 1)
        assert count_flops(family, images) / 1e12 == pytest.approx(teraflops, abs=0.001)
        assert family.decode(images[0].latents).shape == (1, 3, 1024, 1024)


def test_a_module_without_values_is_filled_with_finite_ones() -> None:
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    full_size.fill(module, torch.device("cpu"), torch.bfloat16)
    tensors = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    assert all(tensor.dtype == torch.bfloat16 and torch.isfinite(tensor).all() for tensor in tensors)


def test_a_server_that_is_not_there_is_an_error_of_each_request(catalog: Catalog) -> None:
    trace = uniform(catalog.resolve("tiny-sdxl")).trace(100.0, 2)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        _, served = asyncio.run(play(f"http://127.0.0.1:{unheard.getsockname()[1]}", trace, 10))
    assert [request.error for request in served] == ["ConnectError"] * 2


def test_the_window_joins_what_is_alike_and_nothing_else(checkpoints: Path) -> None:
    model = Model(checkpoints / "models.toml", "tiny-sdxl", "cpu")
    observer = Observer(torch.device("cpu"))
    wishes = [Wishes(f"picture {number}", steps=2) for number in range(5)]
    requests = [settle(wish, model.entry, seed) for seed, wish in enumerate([*wishes, Wishes("other", steps=3)])]

    async def everyone() -> list[Any]:
        window = Window(model, observer)
        await window.load()
        worker = asyncio.create_task(window.run())
        try:
            return await asyncio.gather(*(window.picture(request) for request in requests))
        finally:
            worker.cancel()

    assert [picture.size for picture in asyncio.run(everyone())] == [(32, 32)] * 6
    # Four together for two steps, then the fifth, then the odd one for its three.
    assert observer.drain().batches == [4, 4, 1, 1, 1, 1, 1]


def measured(folder: Path, name: str) -> dict[str, Any]:
    """The JSON of one benchmark, free of anything that belongs to this machine alone."""
    text = (folder / f"{name}.json").read_text()
    assert str(folder.parent) not in text
    assert socket.gethostname() not in text
    content: dict[str, Any] = json.loads(text)
    assert content["format"] == 1
    assert {"cpu", "cores", "device", "versions"} <= content["machine"].keys()
    return content


def run(checkpoints: Path, out: Path, command: str, *words: str) -> None:
    common = ["--models", str(checkpoints / "models.toml"), "--device", "cpu", "--out", str(out)]
    assert main([command, *common, *words]) == 0


def test_forward(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(checkpoints, tmp_path, "forward", "--sizes", "1", "1.5", "--rows", "1", "2", "--rounds", "1")
    results = measured(tmp_path, "forward-tiny-sdxl")["results"]
    assert [(shape["width"], shape["height"]) for shape in results["shapes"]] == [(32, 32), (48, 48)]
    small, large = results["shapes"]
    assert large["flops_per_row"] > 2 * small["flops_per_row"] > 0
    assert [point["rows"] for point in small["rows"]] == [1, 2]
    assert small["knee"] in (1, 2)
    assert small["rows"][0]["of_roofline"] < 1
    assert (tmp_path / "forward-tiny-sdxl.png").stat().st_size > 10_000
    assert "48x48" in capsys.readouterr().out


def test_parity(checkpoints: Path, tmp_path: Path, catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    run(checkpoints, tmp_path, "parity", "--model", "tiny-sd3", "--steps", "2")
    samplers = measured(tmp_path, "parity-tiny-sd3")["results"]["samplers"]
    assert [row["sampler"] for row in samplers] == samplers_for(catalog.resolve("tiny-sd3").prediction)
    for row in samplers:
        assert row["alone"]["identical"] and row["alone"]["psnr"] is None, row
        assert row["crowd"]["largest_pixel_difference"] <= 1, row
    assert "bit-equal" in capsys.readouterr().out


def test_levers(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--levers", "channels_last+fuse_qkv", "skip_guidance=0.5", "quantize=fp8", "--rows", "1", "3"]
    run(checkpoints, tmp_path, "levers", *words, "--rounds", "1", "--steps", "2")
    results = measured(tmp_path, "levers-tiny-sdxl")["results"]
    together, skipping, fp8 = results["levers"]
    assert [point["rows"] for point in together["rows"]] == [1, 3]
    for lever in (together, skipping):
        for times in (*lever["rows"], lever["picture"]):
            assert times["gain"] == pytest.approx(times["plain_seconds"] / times["seconds"]) and times["gain"] > 0
    assert together["largest_pixel_difference"] <= 1 and together["largest_latent_difference"] < 1e-4
    assert skipping["largest_latent_difference"] > 1e-3, "it changes pictures, and the report says so"
    assert "capability 8.9" in fp8["refused"]
    printed = capsys.readouterr().out
    assert "channels_last+fuse_qkv" in printed and "quantize=fp8: model" in printed


def test_levers_of_random_weights_are_compared_by_latents(
    monkeypatch: pytest.MonkeyPatch, checkpoints: Path, tmp_path: Path
) -> None:
    def small() -> dict[str, Any]:
        classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
        with torch.device("meta"):
            folder = checkpoints / "sdxl"
            networks = {name: kind.from_config(kind.load_config(folder / name)) for name, kind in classes.items()}
        return full_size._sdxl_parts() | networks

    model = load_catalog(checkpoints / "models.toml", family_facts()).resolve("tiny-sdxl")
    monkeypatch.setattr(full_size, "full_size_entry", lambda name: replace(model, name=name))
    monkeypatch.setitem(full_size.PARTS, "sdxl", small)
    monkeypatch.setitem(full_size.TEXT, "sdxl", (4, 48, 32))
    words = ["--full-size", "sdxl", "--levers", "fuse_qkv", "--rows", "1", "--rounds", "1", "--steps", "1"]
    run(checkpoints, tmp_path, "levers", *words)
    (lever,) = measured(tmp_path, "levers-sdxl-full-size")["results"]["levers"]
    assert lever["largest_latent_difference"] < 0.05 and "psnr" not in lever  # bfloat16's


def test_a_lever_that_does_not_exist_is_named(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--models", str(checkpoints / "models.toml"), "--device", "cpu", "--out", str(tmp_path)]
    assert main(["levers", *words, "--levers", "compiled"]) == 1
    assert "--levers.speed: unknown key 'compiled'; did you mean 'compile'?" in capsys.readouterr().err


def test_a_catalogue_that_was_named_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["parity", "--models", "/nowhere.toml"])
    assert "there is no file /nowhere.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("figure", "shown"),
    [(2042.1666841611857, "2,042"), (999.4, "999"), (0.12345, "0.123"), (3000, "3000"), (None, "-")],
)
def test_a_figure_has_three_digits_or_all_before_the_point(figure: float | None, shown: str) -> None:
    assert table(["x", "y"], [["a", figure]]).splitlines()[-1].split()[-2] == shown


def test_serving(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the servers' threads would fight over a small machine's cores
    words = ["--systems", "darkroom", "--workload", "uniform", "--rates", "1", "2", "--requests", "4"]
    run(checkpoints, tmp_path, "serving", *words)
    assert multiprocessing.active_children() == []
    results = measured(tmp_path, "serving-tiny-sdxl-uniform")["results"]
    assert results["lock_capacity"] == pytest.approx(1 / results["solo_seconds"]["32x32 4 steps"])
    assert [(run["system"], run["multiple"]) for run in results["runs"]] == [
        ("darkroom", 1.0),
        ("lock", 1.0),
        ("lock", 2.0),
        ("darkroom", 2.0),
    ]
    for each in results["runs"]:
        assert (each["completed"], each["errors"]) == (4, {}), each
        assert 0 < each["first_step"]["p50"] < each["latency"]["p95"]
        assert each["batch"]["largest"] >= 1
    overhead = results["overhead"]
    parts = sum(overhead[name] for name in ("encode", "predict", "decode", "engine", "rest"))
    assert parts == pytest.approx(overhead["total"], rel=0.5)  # a median of sums is not the sum of medians
    assert (tmp_path / "serving-tiny-sdxl-uniform.png").stat().st_size > 10_000
    assert "Overhead" in capfd.readouterr().out


def test_soak(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = soak.Plan(images=20, seconds=0.3, jobs=40, queued=(5, 10))
    monkeypatch.setattr(soak, "QUICK", plan)
    run(checkpoints, tmp_path, "soak", "--quick")
    assert multiprocessing.active_children() == []
    results = measured(tmp_path, "soak")["results"]
    phases = {phase["phase"]: phase for phase in results["lag"]}
    assert list(phases) == ["idle", "generating", "listing", "generating and listing"]
    assert all(phase["samples"] and 0 <= phase["p50"] <= phase["p99"] <= phase["max"] for phase in results["lag"])
    assert phases["idle"]["requests"] == 0
    assert phases["generating"]["requests"] >= soak.AT_ONCE and phases["listing"]["requests"] > 0
    assert results["growth"]["jobs"] == 40 and set(results["growth"]["more"]) == {"resident_mb", "files", "tasks"}
    assert [(run["queued"], run["in_order"]) for run in results["recovery"]] == [(5, True), (10, True)]
    assert "40 jobs" in capsys.readouterr().out
