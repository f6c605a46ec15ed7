"""A process of its own that swaps two models under a budget for one, and prints by how many bytes it grew meanwhile."""

import gc
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from pipelines.budgets import Budgets
from pipelines.device import pick_device
from pipelines.engine import Engine
from pipelines.families import family_facts
from pipelines.models_toml import load_catalog
from tests.making import picture

WARM = 4
"""Swaps after which each model was read, and had its first picture, twice."""


def memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def swap(models: Path, own_memory: bool, swaps: int) -> int:
    entries = [load_catalog(models, family_facts()).resolve(name) for name in ("tiny-sdxl", "tiny-sd3")]
    device = replace(pick_device("cpu"), own_memory=own_memory)
    largest = max(Engine(device).read(entry).weight_bytes for entry in entries)
    engine = Engine(device, Budgets(vram=largest, ram=2 * largest))
    before = 0
    for number in range(WARM + swaps):
        if number == WARM:
            before = memory()
        entry = entries[number % 2]
        engine.load(entry)
        picture(engine, entry)
        assert engine.state.resident == (entry.identity,), "a swap each time"
        assert len(engine.state.parked) == (own_memory and number > 0)
    return memory() - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(swap(Path(sys.argv[1]), sys.argv[2] == "own", swaps=20))
