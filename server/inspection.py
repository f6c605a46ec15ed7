"""What `darkroom models` and `darkroom doctor` say: looking at the machine without changing it."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from pipelines.catalog import Catalog, ModelEntry
from pipelines.checkpoint import CheckpointSize
from pipelines.errors import CatalogError, CheckpointError, DeviceError, PipelineError
from pipelines.hashing import CACHE_NAME, FileHashes, model_hash
from pipelines.models_toml import load_catalog
from pipelines.sources import inspect_entry
from server.settings import Settings
from storage.schema import inspect_database

MIN_FREE_BYTES = 500 * 2**20
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


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
    """
    from pipelines.families import families, family_facts

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
        yield f"  on disk  {_on_disk(entry, families()[entry.family].pipeline_class)}"
        with suppress(PipelineError):  # not hashed yet, or not whole, which the line above says
            yield f"  hash     {model_hash(entry, hashes.recall)}"


def _on_disk(entry: ModelEntry, pipeline_class: str) -> str:
    try:
        size = inspect_entry(entry, pipeline_class)
    except CheckpointError as error:
        return f"unusable: {error}"
    if size is None:
        return "no; it is downloaded when the model is first loaded"
    return f"{_gigabytes(size.disk_bytes)} in {size.files} files; {_memory(entry, size)}"


def _memory(entry: ModelEntry, size: CheckpointSize) -> str:
    if entry.dtype != "auto":
        return f"needs {_gigabytes(size.parameters * _BYTES[entry.dtype])} of memory in {entry.dtype}"
    half, full = size.parameters * 2, size.parameters * 4
    return f"needs {_gigabytes(half)} of memory on a GPU, {_gigabytes(full)} on a CPU"


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything a server needs, in the order in which it needs it."""
    yield from _torch(settings)
    yield _memory_of_machine()
    yield _disk(settings)
    yield from _models(settings)
    yield _database(settings)


def _torch(settings: Settings) -> Iterator[Finding]:
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
        return
    yield Finding("device", str(device))
    if device.torch_device.type == "cpu" and shutil.which("nvidia-smi"):
        yield Finding(
            "driver",
            "nvidia-smi is here, but torch sees no GPU",
            "install the torch build for this driver's CUDA version, and check `nvidia-smi` for errors.",
        )
    elif device.torch_device.type == "cuda":
        yield Finding("driver", f"CUDA {torch.version.cuda}")


def _memory_of_machine() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    seen = f"{_gigabytes(memory.available)} free of {_gigabytes(memory.total)}"
    problem = None if memory.available > 2 * 2**30 else "less than 2 GB of memory is free; close other programs."
    return Finding("memory", seen, problem)


def _disk(settings: Settings) -> Finding:
    place = settings.data.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    problem = None if free > MIN_FREE_BYTES else "free some space, or set DARKROOM_DATA to a folder elsewhere."
    return Finding("disk", f"{_gigabytes(free)} free for {settings.data.absolute()}", problem)


def _models(settings: Settings) -> Iterator[Finding]:
    from pipelines.families import families, family_facts

    try:
        catalog: Catalog = load_catalog(settings.models, family_facts())
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
        there = f"{entry.source} is downloaded when it is first loaded"
        yield Finding(f"model {entry.name}", f"{_gigabytes(size.disk_bytes)}, whole and safe" if size else there)


def _database(settings: Settings) -> Finding:
    report = inspect_database(settings.data)
    sqlite = f"SQLite {report.sqlite_version}"
    if not report.exists:
        return Finding("database", f"none yet in {settings.data.absolute()}; the first start makes it ({sqlite})")
    if report.quick_check != "ok":
        return Finding("database", f"{report.path} is damaged: {report.quick_check}", "put a good copy in its place.")
    migration = "" if report.revision == report.head else f", to be migrated to {report.head} at the next start"
    return Finding("database", f"{report.path}, revision {report.revision}{migration}, sound ({sqlite})")


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
