"""The shipped demo checkpoints: small, judged, and obedient."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL.Image import Image

from pipelines.catalog import Catalog, ModelEntry
from pipelines.device import pick_device
from pipelines.engine import Engine
from pipelines.families import families, family_facts
from pipelines.models_toml import DEMO_CATALOG, load_catalog
from pipelines.request import Wishes, settle
from tests.single_file import write_sd3, write_sdxl

NAMES = ("demo-sdxl", "demo-sd3")
DENOISERS = {"demo-sdxl": "unet", "demo-sd3": "transformer"}
MEGABYTES = 12


@pytest.fixture(scope="module")
def demo() -> Catalog:
    return load_catalog(DEMO_CATALOG, family_facts())


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(pick_device("cpu"))


def draw(engine: Engine, entry: ModelEntry, prompts: list[str]) -> list[Image]:
    """One picture of each prompt, in one batch."""
    engine.load(entry)
    requests = [settle(Wishes(prompt), entry, seed=1) for prompt in prompts]
    batch = engine.begin(entry, requests, engine.encode(entry, requests))
    while not batch[0].finished:
        assert engine.step(entry, batch) == [None] * len(batch)
    return engine.finish(entry, batch)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_small_and_was_judged(name: str) -> None:
    folder = DEMO_CATALOG.parent / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MEGABYTES * 1e6
    judged = json.loads((folder / "evaluation.json").read_text())
    (weights,) = (folder / DENOISERS[name]).glob("*.safetensors")
    assert judged["denoiser_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest(), "the figures are another's"
    assert judged["psnr"] >= 28
    assert min(judged["scores"]["time"], judged["scores"]["land"]) >= 0.9
    assert judged["scores"]["extras_recall"] >= 0.7
    assert judged["captions"] >= 200


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_loads_from_one_file_in_the_original_layout(demo: Catalog, name: str, tmp_path: Path) -> None:
    """With its VAE and without its text encoders, as SD3.5 is published: they come from the `config` folder."""
    entry = demo.resolve(name)
    write = {"sdxl": write_sdxl, "sd3": write_sd3}[entry.family]
    file = write(Path(entry.source), tmp_path / "checkpoint.safetensors", ["vae"])
    single = replace(entry, source=str(file), config=entry.source)
    device = pick_device("cpu")
    from_file, from_folder = (
        families()[entry.family].load(one, device.torch_device, device.dtype) for one in (single, entry)
    )
    networks = zip((*from_file.modules, from_file.vae), (*from_folder.modules, from_folder.vae), strict=True)
    for network, expected in networks:
        weights = network.state_dict()
        assert all(torch.equal(weights[key], tensor) for key, tensor in expected.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_time_of_day_is_the_one_asked_for(demo: Catalog, engine: Engine, name: str) -> None:
    entry = demo.resolve(name)
    times = ("noon", "sunset", "midnight")
    pictures = draw(engine, entry, [f"mountains at {time}" for time in times])
    skies = {time: np.asarray(picture)[:48].mean((0, 1)) for time, picture in zip(times, pictures, strict=True)}
    red, _, blue = skies["noon"]
    assert blue > red + 30
    red, _, blue = skies["sunset"]
    assert red > blue + 10
    assert skies["midnight"].mean() < min(skies["noon"].mean(), skies["sunset"].mean()) - 30
