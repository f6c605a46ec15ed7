"""How results are told: progress while it runs, JSON files, and the machine in general terms."""

import json
import platform
import sys
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import torch

from pipelines.device import Device

FORMAT = 1
"""Rises when a JSON file's shape changes."""

LOAD_BEFORE = round(psutil.getloadavg()[0], 1)
"""The machine's load over the last minute as the program starts, before it makes any itself."""


class Progress:
    """Lines on stderr that say how far the benchmark is."""

    def __init__(self) -> None:
        self._began = monotonic()

    def __call__(self, line: str) -> None:
        print(f"[{monotonic() - self._began:6.1f} s] {line}", file=sys.stderr, flush=True)


def write_json(folder: Path, name: str, device: Device, options: dict[str, Any], results: dict[str, Any]) -> Path:
    """Write `name`.json: what was measured, with which options, on what kind of machine. No host name, no path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"format": FORMAT, "machine": machine(device), "options": options, "results": results}
    path.write_text(json.dumps(_finite(content), indent=2) + "\n", encoding="utf-8")
    return path


def machine(device: Device) -> dict[str, Any]:
    """The machine in general terms."""
    packages = ("torch", "diffusers", "transformers", "litestar", "uvicorn")
    return {
        "device": str(device),
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_before": LOAD_BEFORE,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _finite(value: Any) -> Any:
    """JSON knows no infinity (the PSNR of equal pictures) and no NaN: both become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
