"""Models under budgets: who makes room, who is parked, what comes back, and that nothing grows."""

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipelines.budgets import Budgets, budget_bytes, machine_memory
from pipelines.catalog import Catalog, ModelEntry, Offload, name_of
from pipelines.device import Device, pick_device
from pipelines.engine import Engine
from pipelines.errors import CheckpointError, NoRoom, NotRead
from pipelines.family import Family
from pipelines.hosting import CHUNK_BYTES, into_host
from pipelines.progress import LoadStage
from tests.making import picture

SDXL, SD3, T5 = MODELS = ("tiny-sdxl", "tiny-sd3", "tiny-sd3-t5")
AMPLE = 10**9
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def sizes(catalog: Catalog) -> dict[str, int]:
    """What each tiny model's weights take."""
    engine = Engine(pick_device("cpu"))
    return {name: engine.read(catalog.resolve(name)).weight_bytes for name in MODELS}


def shared() -> Device:
    return pick_device("cpu")


def discrete() -> Device:
    """The CPU as if its memory were a device's own: weights then really go home and come back."""
    return replace(pick_device("cpu"), own_memory=True)


def names(identities: tuple[str, ...]) -> list[str]:
    return [name_of(identity) for identity in identities]


def resident(engine: Engine) -> list[str]:
    return names(engine.state.resident)


def parked(engine: Engine) -> list[str]:
    return names(engine.state.parked)


def plant_lack_of_memory(monkeypatch: pytest.MonkeyPatch, lacking: Callable[[], bool]) -> None:
    place = Family.place

    def planted(family: Family, *told: Any) -> None:
        if lacking():
            raise RuntimeError("MPS backend out of memory (planted)")
        place(family, *told)

    monkeypatch.setattr(Family, "place", planted)


def test_models_make_room_for_each_other_but_never_while_busy(catalog: Catalog, sizes: dict[str, int]) -> None:
    engine = Engine(shared(), Budgets(vram=sizes[SDXL] + max(sizes[SD3], sizes[T5]), ram=0))
    sdxl, sd3, third = (catalog.resolve(name) for name in MODELS)
    engine.load(sdxl)
    engine.load(sd3)
    engine.load(third, busy={sdxl.identity})
    assert resident(engine) == [SDXL, T5], "the eldest is busy, so the next eldest went"
    assert engine.state.weight_bytes == {sdxl.identity: sizes[SDXL], third.identity: sizes[T5]}


def test_the_model_used_longest_ago_goes_and_not_the_one_loaded_first(catalog: Catalog, sizes: dict[str, int]) -> None:
    engine = Engine(shared(), Budgets(vram=sum(sizes.values()) - 1, ram=0))
    for name in (SDXL, SD3, SDXL, T5):
        engine.load(catalog.resolve(name))
    assert resident(engine) == [SDXL, T5]


def test_a_model_that_cannot_be_loaded_costs_nobody_their_place(catalog: Catalog, sizes: dict[str, int]) -> None:
    engine = Engine(shared(), Budgets(vram=sizes[SDXL], ram=0))
    engine.load(catalog.resolve(SDXL))
    with pytest.raises(CheckpointError):
        engine.load(catalog.resolve("missing"))
    assert resident(engine) == [SDXL]


@pytest.mark.parametrize("device", [shared, discrete])
def test_a_model_larger_than_the_budget_names_both_figures_and_costs_nobody_their_place(
    catalog: Catalog, sizes: dict[str, int], device: Callable[[], Device]
) -> None:
    engine = Engine(device(), Budgets(vram=sizes[SD3], ram=AMPLE))
    engine.load(catalog.resolve(SD3))
    with pytest.raises(
        CheckpointError, match=r"take 1\.6 MB, and DARKROOM_VRAM_BUDGET comes to 1\.4 MB; choose"
    ) as refused:
        engine.load(catalog.resolve(T5))
    assert ("offload" in str(refused.value)) == engine.device.own_memory
    assert resident(engine) == [SD3] and not parked(engine)


def test_a_model_too_large_for_the_device_is_an_error_that_helps(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog
) -> None:
    engine = Engine(shared())
    plant_lack_of_memory(monkeypatch, lambda: True)
    with pytest.raises(CheckpointError, match="does not fit in the memory") as refused:
        engine.load(catalog.resolve(SDXL))
    assert refused.value.__cause__ is None and refused.value.__context__ is None, "either would keep the weights alive"
    assert resident(engine) == []


@pytest.mark.parametrize("device", [shared, discrete])
def test_a_model_without_room_beside_busy_ones_may_be_asked_for_again(
    catalog: Catalog, sizes: dict[str, int], device: Callable[[], Device]
) -> None:
    engine = Engine(device(), Budgets(vram=max(sizes.values()), ram=AMPLE))
    sdxl, sd3 = catalog.resolve(SDXL), catalog.resolve(SD3)
    engine.load(sdxl)
    with pytest.raises(NoRoom, match="beside tiny-sdxl"):
        engine.load(sd3, busy={sdxl.identity})
    assert resident(engine) == [SDXL]
    if engine.device.own_memory:
        assert parked(engine) == [SD3], "it was read, and waits in host memory"
        engine.place(sd3, None)
    engine.load(sd3)
    assert resident(engine) == [SD3]


def test_idle_models_give_up_their_memory_to_one_that_lacks_it(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog
) -> None:
    engine = Engine(discrete())
    engine.load(catalog.resolve(SDXL))
    engine.load(catalog.resolve(SD3))
    plant_lack_of_memory(monkeypatch, lambda: len(engine.state.resident) == 2)
    engine.load(catalog.resolve(T5), busy={catalog.resolve(SDXL).identity})
    assert resident(engine) == [SDXL, T5], "the one at work stayed"
    with pytest.raises(NoRoom):
        engine.place(catalog.resolve(SD3), None, busy=set(engine.state.resident))
    assert resident(engine) == [SDXL, T5] and parked(engine) == [SD3]


@pytest.mark.parametrize("name", MODELS)
def test_a_parked_model_comes_back_without_its_files_and_makes_the_same_picture(
    catalog: Catalog, checkpoints: Path, sizes: dict[str, int], tmp_path: Path, name: str
) -> None:
    entry, other = catalog.resolve(name), catalog.resolve(SDXL if name == SD3 else SD3)
    engine = Engine(discrete(), Budgets(vram=max(sizes.values()), ram=AMPLE))
    engine.load(entry)
    before = picture(engine, entry)
    engine.load(other)
    assert parked(engine) == [name]
    source = Path(entry.source)
    source.rename(tmp_path / "away")
    try:
        engine.load(entry)
    finally:
        (tmp_path / "away").rename(source)
    assert resident(engine) == [name] and parked(engine) == [other.name]
    assert picture(engine, entry) == before


def test_the_ram_budget_keeps_those_parked_last(catalog: Catalog, sizes: dict[str, int]) -> None:
    engine = Engine(discrete(), Budgets(vram=max(sizes.values()), ram=sizes[SD3] + sizes[SDXL] - 1))
    for name in (SDXL, SD3, T5):
        engine.load(catalog.resolve(name))
    assert parked(engine) == [SD3], "the first made room for it"
    engine = Engine(discrete(), Budgets(vram=max(sizes.values()), ram=sizes[SDXL] - 1))
    for name in (SDXL, SD3):
        engine.load(catalog.resolve(name))
    assert parked(engine) == [], "there is no room even for one"


def test_what_was_read_in_vain_waits_in_the_ram_budget_in_place_of_what_waited_before(
    catalog: Catalog, sizes: dict[str, int]
) -> None:
    engine = Engine(discrete(), Budgets(vram=max(sizes.values()), ram=sizes[SD3] + sizes[T5] - 1))
    sdxl = catalog.resolve(SDXL)
    engine.load(sdxl)
    for name in (SD3, T5):
        with pytest.raises(NoRoom):
            engine.load(catalog.resolve(name), busy={sdxl.identity})
    assert parked(engine) == [T5]


def test_where_there_is_one_memory_nothing_is_parked_and_room_is_made_before_the_reading(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog, sizes: dict[str, int]
) -> None:
    engine = Engine(shared(), Budgets(vram=max(sizes.values()), ram=AMPLE))
    engine.load(catalog.resolve(SDXL))
    seen = []
    read = engine.read
    monkeypatch.setattr(engine, "read", lambda entry: seen.append(resident(engine)) or read(entry))
    engine.load(catalog.resolve(SD3))
    assert seen == [[]], "both at once would be more than the memory there is"
    assert resident(engine) == [SD3] and parked(engine) == []


def test_an_unloaded_model_is_gone_and_must_be_read_again(catalog: Catalog, sizes: dict[str, int]) -> None:
    engine = Engine(discrete(), Budgets(vram=max(sizes.values()), ram=AMPLE))
    sdxl, sd3 = catalog.resolve(SDXL), catalog.resolve(SD3)
    engine.load(sdxl)
    engine.load(sd3)
    for entry in (sdxl, sd3):
        engine.unload(entry.identity)
        with pytest.raises(NotRead):
            engine.place(entry, None)
    assert engine.state.resident == engine.state.parked == ()
    engine.unload("unknown@0")


def test_weights_keep_no_file_open(catalog: Catalog) -> None:
    """A file that is overwritten in place would change a model at work; one cut short would end the process."""
    family = Engine(shared()).read(catalog.resolve(SDXL))
    files = {Path(mapping.path).suffix for mapping in psutil.Process().memory_maps()}
    assert family.weight_bytes and ".safetensors" not in files


def test_a_weights_order_in_memory_survives_the_way_home() -> None:
    network = torch.nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)
    large = torch.nn.Linear(CHUNK_BYTES // 4 // 1024 + 1, 1024, bias=False)  # more than a block
    expected = [weight.clone() for weight in (*network.parameters(), *large.parameters())]
    into_host([network, large], pinned=False)
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    found = [*network.parameters(), *large.parameters()]
    assert all(torch.equal(weight, other) for weight, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("memory", ["own", "shared"])
def test_twenty_swaps_leave_nothing_behind(
    checkpoints: Path, memory: str, record_property: Callable[[str, object], None]
) -> None:
    """A model that each swap left behind would come to three times the bound. Alone in a process, or others blur it."""
    command = [sys.executable, "-m", "tests.swaps", str(checkpoints / "models.toml"), memory]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    record_property("told", f"{int(done.stdout) / 2**20:.1f} MiB more after 20 swaps ({memory} memory)")
    assert int(done.stdout) < 10 * 2**20


class OtherThread:
    """Calls on a thread of its own, as the server's loader thread does."""

    def __call__(self, work: Callable[[], Any]) -> Any:
        outcome: list[Any] = []
        thread = threading.Thread(target=lambda: outcome.append(work()))
        thread.start()
        thread.join(60)
        return outcome[0]


def test_reading_on_another_thread_computes_alone_and_leaves_the_engines_thread_as_it_was(catalog: Catalog) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine = Engine(shared())
        entry = catalog.resolve(SDXL)
        threads: list[int] = []
        family = OtherThread()(lambda: engine.read(entry, lambda stage, done: threads.append(torch.get_num_threads())))
        assert set(threads) == {1} and torch.get_num_threads() == 2
        engine.place(entry, family)
        assert picture(engine, entry)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODELS)
def test_reading_in_half_precision_changes_no_other_threads_default_dtype(catalog: Catalog, name: str) -> None:
    engine = Engine(shared())
    changes: list[torch.dtype] = []
    set_default_dtype = torch.set_default_dtype
    vars(torch).update(set_default_dtype=changes.append)
    try:
        family = engine.read(replace(catalog.resolve(name), dtype="bfloat16"))
    finally:
        vars(torch).update(set_default_dtype=set_default_dtype)
    assert changes == []
    assert {weight.dtype for module in family.modules for weight in module.parameters()} == {torch.bfloat16}


def test_progress_goes_through_the_stages_and_only_forward(catalog: Catalog) -> None:
    told: list[tuple[LoadStage, float]] = []
    engine = Engine(shared())
    entry = catalog.resolve(SD3)
    engine.place(entry, engine.read(entry, lambda *step: told.append(step)), progress=lambda *step: told.append(step))
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages == [LoadStage.CHECKING, LoadStage.READING, LoadStage.BUILDING, LoadStage.PLACING]
    for stage in stages:
        fractions = [done for told_stage, done in told if told_stage is stage]
        assert fractions == sorted(fractions) and fractions[-1] == 1.0


def offloaded(
    catalog: Catalog, name: str, offload: Offload, budgets: Budgets | None = None
) -> tuple[Engine, ModelEntry]:
    engine = Engine(discrete(), budgets)
    entry = replace(catalog.resolve(name), offload=offload)
    engine.load(entry)
    return engine, entry


@pytest.mark.parametrize("offload", [Offload.MODEL, Offload.GROUP])
@pytest.mark.parametrize("name", MODELS)
def test_an_offloaded_model_makes_the_same_pictures(catalog: Catalog, name: str, offload: Offload) -> None:
    whole, entry = offloaded(catalog, name, Offload.NONE)
    engine, small = offloaded(catalog, name, offload)
    assert small.identity != entry.identity
    for prompt in ("a hat", "a cat"):
        assert picture(engine, small, prompt) == picture(whole, entry, prompt)
    assert engine.state.weight_bytes[small.identity] < whole.state.weight_bytes[entry.identity]


def on_device(homes: dict[int, int], network: torch.nn.Module) -> int:
    """How many of a network's weights are not where they were at home."""
    return sum(weight.data_ptr() != homes[id(weight)] for weight in network.parameters())


@pytest.mark.parametrize("offload", [Offload.MODEL, Offload.GROUP])
@pytest.mark.parametrize("name", MODELS)
def test_offloaded_networks_are_on_the_device_only_while_at_work(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog, name: str, offload: Offload
) -> None:
    engine, entry = offloaded(catalog, name, offload)
    family = engine.family(entry)
    assert family._turns is not None
    family._turns.leave()  # the VAE was at work when the previews were fitted
    homes = {id(weight): weight.data_ptr() for network in family.networks for weight in network.parameters()}
    worked: list[int] = []

    def look(at_work: int) -> None:
        worked.append(at_work)
        there = [index for index, network in enumerate(family.networks) if on_device(homes, network)]
        streamed = offload is Offload.GROUP and at_work == 0
        assert there == ([] if streamed else [at_work])  # a CPU's layers stream nowhere

    for index, network in enumerate(family.networks):
        entered = network.decoder if network is family.vae else network
        entered.register_forward_hook(lambda *_, index=index: look(index))
    picture(engine, entry)
    assert set(worked) == set(range(len(family.networks)))
    last = family.networks[-1]
    assert on_device(homes, last) == len(list(last.parameters()))
    engine.load(catalog.resolve(SD3))
    family.park(pinned=False)
    assert not any(on_device(homes, network) for network in family.networks)


def test_group_offload_hooks_every_layer_of_the_denoiser(catalog: Catalog) -> None:
    engine, entry = offloaded(catalog, SDXL, Offload.GROUP)
    denoiser = engine.family(entry).modules[0]
    bare = [
        part
        for part in denoiser.modules()
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d) and not hasattr(part, "_diffusers_hook")
    ]
    assert not bare


def test_an_offloaded_model_fits_a_budget_that_all_of_it_does_not(catalog: Catalog, sizes: dict[str, int]) -> None:
    engine, entry = offloaded(
        catalog, SDXL, Offload.MODEL, Budgets(vram=sizes[SDXL] - 1, ram=sizes[SDXL] + sizes[SD3] - 1)
    )
    before = picture(engine, entry)
    for _ in range(2):  # parked and unparked, its hooks are still one each
        engine.load(catalog.resolve(SD3))
        assert parked(engine) == [SDXL]
        engine.load(entry)
        assert picture(engine, entry) == before
    assert parked(engine) == [], "what the offloaded model keeps in host memory counts there"


def test_where_there_is_one_memory_offload_is_left_out(catalog: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(shared())
    entry = replace(catalog.resolve(SDXL), offload=Offload.GROUP)
    engine.load(entry)
    assert "offload saves nothing here" in caplog.text
    assert engine.family(entry).offload is Offload.NONE


def test_budgets_are_written_as_people_write_them() -> None:
    assert [budget_bytes(text, 10**10, 0.8) for text in ("12GB", "1.5 gb", "800MB", "2GiB", "80%", "auto", "0MB")] == [
        12 * 10**9,
        15 * 10**8,
        8 * 10**8,
        2**31,
        8 * 10**9,
        8 * 10**9,
        0,
    ]
    for wrong in ("12", "GB", "-1GB", "101%", "1e9GB", "", "half"):
        with pytest.raises(ValueError, match='like "12GB"'):
            budget_bytes(wrong, 10**10, 0.8)


def test_the_defaults_leave_room_and_one_memory_is_counted_once() -> None:
    whole = machine_memory()
    assert 0 < whole <= psutil.virtual_memory().total
    assert shared().budgets() == Budgets(int(whole * 0.8), 0)
    assert discrete().budgets("1GB", "auto") == Budgets(10**9, int(whole * 0.5))
