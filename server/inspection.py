"""What `darkroom models` and `darkroom doctor` say: looking at the machine without changing it."""

import shutil
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.budgets import gigabytes
from pipelines.catalog import Catalog, ModelEntry, Offload
from pipelines.checkpoint import CheckpointSize
from pipelines.errors import CatalogError, CheckpointError, DeviceError, PipelineError
from pipelines.hashing import CACHE_NAME, FileHashes, model_hash
from pipelines.models_toml import load_catalog
from pipelines.sources import inspect_entry
from server.hub.mappings import check_mappings
from server.settings import Settings, unknown_variables
from storage.schema import inspect_database

if TYPE_CHECKING:
    from pipelines.device import Device

MIN_FREE_BYTES = 500 * 2**20


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was seen and, if it is a problem, what to do about it."""

    subject: str
    seen: str
    problem: str | None = None

    def __str__(self) -> str:
        mark = "✗" if self.problem else "✓"
        remedy = f"\n  → {self.problem}" if self.problem else ""
        return f"{mark} {self.subject}: {self.seen}{remedy}"


def model_lines(settings: Settings) -> Iterator[str]:
    """A short paragraph for each model of the catalogue.

    Raises:
        CatalogError: models.toml cannot be used.
        DeviceError: the device asked for is not here.
    """
    from pipelines.device import pick_device
    from pipelines.families import families, family_facts

    device = pick_device(settings.device)
    budget = device.budgets(settings.vram_budget).vram
    catalog = load_catalog(settings.models, family_facts())
    hashes = FileHashes(settings.data / CACHE_NAME)
    yield f"catalogue: {catalog.path}"
    for entry in catalog.entries.values():
        default = "  (default)" if entry.name == catalog.default else ""
        yield f"\n{entry.name}{default}"
        yield f"  family   {entry.family}, {entry.width}x{entry.height}, {entry.steps} steps, {entry.sampler}"
        yield f"  source   {entry.source}{f' @ {entry.revision}' if entry.revision else ''}"
        if entry.aliases:
            yield f"  aliases  {', '.join(entry.aliases)}"
        if entry.license:
            yield f"  license  {entry.license}"
        yield f"  on disk  {_on_disk(entry, families()[entry.family].pipeline_class, device, budget)}"
        with suppress(PipelineError):  # not hashed yet, or not whole, which the line above says
            yield f"  hash     {model_hash(entry, hashes.recall)}"


def _on_disk(entry: ModelEntry, pipeline_class: str, device: "Device", budget: int) -> str:
    try:
        size = inspect_entry(entry, pipeline_class)
    except CheckpointError as error:
        return f"unusable: {error}"
    if size is None:
        return "no; it is downloaded when the model is first loaded"
    needs, too_large = _needs(entry, size, device, budget)
    return f"{gigabytes(size.disk_bytes)} in {size.files} files; {needs}{', too much' if too_large else ''}"


def _needs(entry: ModelEntry, size: CheckpointSize, device: "Device", budget: int) -> tuple[str, bool]:
    """What a model's weights need of the budget, in words, and whether that is known to be too much."""
    dtype = device.dtype_for(entry.dtype)
    needed = size.parameters * dtype.itemsize
    part = device.own_memory and entry.offload is not Offload.NONE
    share = f'a part at a time of its {gigabytes(needed)} (offload = "{entry.offload}")' if part else gigabytes(needed)
    words = f"needs {share} in {str(dtype).removeprefix('torch.')}, of {gigabytes(budget)} for all models"
    return words, needed > budget and not part


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything a server needs, in the order in which it needs it."""
    for sentence in unknown_variables():
        yield Finding("settings", sentence, "correct the variable's name, or remove it.")
    device = yield from _torch(settings)
    yield _memory_of_machine()
    if device is not None:
        yield _budgets(settings, device)
    yield _disk(settings)
    yield from _models(settings, device)
    yield _database(settings)


def _torch(settings: Settings) -> Generator[Finding, None, "Device | None"]:
    import diffusers
    import torch
    import transformers

    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    yield Finding("libraries", versions)
    from pipelines.device import pick_device

    try:
        device = pick_device(settings.device)
    except DeviceError as error:
        yield Finding("device", settings.device, f"{error} Set DARKROOM_DEVICE=auto.")
        return None
    yield Finding("device", str(device))
    if device.torch_device.type == "cpu" and shutil.which("nvidia-smi"):
        yield Finding(
            "driver",
            "nvidia-smi is here, but torch sees no GPU",
            "install the torch build for this driver's CUDA version, and check `nvidia-smi` for errors.",
        )
    elif device.torch_device.type == "cuda":
        yield Finding("driver", f"CUDA {torch.version.cuda}")
    return device


def _budgets(settings: Settings, device: "Device") -> Finding:
    budgets = device.budgets(settings.vram_budget, settings.ram_budget)
    parked = f"{gigabytes(budgets.ram)} for parked ones" if device.own_memory else "none is parked: there is one memory"
    idle = f"; unloaded after {settings.idle_unload} idle minutes" if settings.idle_unload else ""
    problem = None
    if budgets.vram > device.memory_bytes:
        problem = f"the device has {gigabytes(device.memory_bytes)}; lower DARKROOM_VRAM_BUDGET."
    return Finding("budgets", f"{gigabytes(budgets.vram)} for models at work, {parked}{idle}", problem)


def _memory_of_machine() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    seen = f"{gigabytes(memory.available)} free of {gigabytes(memory.total)}"
    problem = None if memory.available > 2 * 2**30 else "less than 2 GB of memory is free; close other programs."
    return Finding("memory", seen, problem)


def _disk(settings: Settings) -> Finding:
    place = settings.data.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    problem = None if free > MIN_FREE_BYTES else "free some space, or set DARKROOM_DATA to a folder elsewhere."
    return Finding("disk", f"{gigabytes(free)} free for {settings.data.absolute()}", problem)


def _models(settings: Settings, device: "Device | None") -> Iterator[Finding]:
    from pipelines.families import families, family_facts

    try:
        catalog: Catalog = load_catalog(settings.models, family_facts())
        check_mappings(catalog)
    except CatalogError as error:
        going = "a server that runs goes on with the last one that could be used; none can be started."
        yield Finding("models.toml", f"cannot be used; {going}", str(error))
        return
    demo = "" if catalog.path == settings.models else f"{settings.models} names no model, so the demo's: "
    yield Finding("models.toml", f"{demo}{catalog.path}, {len(catalog.entries)} models, default {catalog.default}")
    for entry in catalog.entries.values():
        try:
            size = inspect_entry(entry, families()[entry.family].pipeline_class)
        except CheckpointError as error:
            yield Finding(f"model {entry.name}", "cannot be loaded", str(error))
            continue
        yield _model(entry, size, device, settings)


def _model(entry: ModelEntry, size: CheckpointSize | None, device: "Device | None", settings: Settings) -> Finding:
    if size is None:
        return Finding(f"model {entry.name}", f"{entry.source} is downloaded when it is first loaded")
    seen = f"{gigabytes(size.disk_bytes)}, whole and safe"
    if device is None:
        return Finding(f"model {entry.name}", seen)
    needs, too_large = _needs(entry, size, device, device.budgets(settings.vram_budget).vram)
    offload = ', offload = "model" or "group"' if device.own_memory else ""
    remedy = f"set a smaller dtype or variant{offload} in models.toml, or raise DARKROOM_VRAM_BUDGET."
    return Finding(f"model {entry.name}", f"{seen}; {needs}", remedy if too_large else None)


def _database(settings: Settings) -> Finding:
    report = inspect_database(settings.data)
    sqlite = f"SQLite {report.sqlite_version}"
    if not report.exists:
        return Finding("database", f"none yet in {settings.data.absolute()}; the first start makes it ({sqlite})")
    if report.quick_check != "ok":
        return Finding("database", f"{report.path} is damaged: {report.quick_check}", "put a good copy in its place.")
    migration = "" if report.revision == report.head else f", to be migrated to {report.head} at the next start"
    return Finding("database", f"{report.path}, revision {report.revision}{migration}, sound ({sqlite})")
