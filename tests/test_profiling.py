"""Profiles: operations counted without running the network are those of a real run, and what cannot be counted is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipelines.catalog import Catalog
from pipelines.denoising import Denoising
from pipelines.device import pick_device
from pipelines.engine import Engine
from pipelines.families import family_facts
from pipelines.family import Family
from pipelines.levers import Speed
from pipelines.models_toml import DEMO_CATALOG, load_catalog
from pipelines.profiling import count_flops, unguided_images
from pipelines.request import BatchKey
from server.scheduling.cost import CostModel
from tests.test_speed import pulled

TINY = ("tiny-sdxl", "tiny-sd3", "tiny-sd3-t5")
DEMO = ("demo-sdxl", "demo-sd3")


def counted_by_running(family: Family, batch: list[Denoising]) -> int:
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        family.predict(batch)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", [*TINY, *DEMO])
def test_the_operations_are_those_of_a_real_run(engine: Engine, catalog: Catalog, name: str) -> None:
    models = catalog if name in TINY else load_catalog(DEMO_CATALOG, family_facts())
    entry = models.resolve(name)
    engine.load(entry)
    family = engine.family(entry)
    step = entry.size_step
    for width, height, rows in ((entry.width, entry.height, 1), (entry.width, 2 * step, 1), (2 * step, 3 * step, 3)):
        with torch.inference_mode():
            batch = unguided_images(family, width, height, rows)
            assert count_flops(family, batch) == counted_by_running(family, batch) > 0


@pytest.mark.parametrize("name", TINY[:2])
def test_levers_do_not_change_what_is_counted(engine: Engine, catalog: Catalog, name: str) -> None:
    entry = catalog.resolve(name)
    engine.load(entry)
    fused, quick = pulled(catalog, name, Speed(fuse_qkv=True, channels_last=True))
    with torch.inference_mode():
        counts = {
            count_flops(family, unguided_images(family, entry.width, entry.height, 1))
            for family in (engine.family(entry), fused.family(quick))
        }
    assert len(counts) == 1


def test_counting_runs_no_network_of_the_device(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, catalog: Catalog
) -> None:
    entry = catalog.resolve("tiny-sd3")
    engine.load(entry)
    family = engine.family(entry)
    with torch.inference_mode():
        images = unguided_images(family, entry.width, entry.height, 1)

        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("the network itself was run")

        monkeypatch.setattr(family.denoiser, "forward", refuse)
        assert count_flops(family, images) > 0


def test_a_network_that_cannot_be_counted_is_measured_by_its_pixels(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = catalog.resolve("tiny-sdxl")
    engine = Engine(pick_device("cpu"), folder=tmp_path)
    engine.load(entry)

    def refuse(config: Any) -> Any:
        raise NotImplementedError("planted")

    pixels = entry.width * entry.height
    with monkeypatch.context() as planted:
        planted.setattr(type(engine.family(entry).denoiser), "from_config", refuse)
        profile = engine.measure(entry)
    assert not profile.counted and "cannot be counted (planted)" in caplog.text
    assert profile.row_flops(pixels) == pixels and profile.steps[0][0] < pixels < profile.steps[-1][0]
    assert all(seconds > 0 for _, seconds in profile.steps)
    cost, key = CostModel(), BatchKey.of(entry, unguided_images(engine.family(entry), 32, 32, 1)[0].request)
    cost.adopt(entry.identity, profile)
    assert cost.knows(entry.identity) and cost.flops(key, 2) == 0, "pixels are not told as operations"
    again = engine.measure(entry)
    assert again.counted and again.row_flops(pixels) > 100 * pixels, "what was not counted is not kept"
    cost.adopt(entry.identity, again)
    assert cost.flops(key, 2) == 2 * again.row_flops(pixels)
    assert engine.measure(entry) == again, "and what was, is"
