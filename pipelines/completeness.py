"""Refusing loaded networks of which the checkpoint did not hold everything."""

from pathlib import Path
from typing import Any

import torch

from pipelines.checkpoint import weight_files
from pipelines.errors import CheckpointError
from pipelines.headers import read_header


def refuse_incomplete(pipeline: Any, component: str, folder: Path, variant: str | None) -> None:
    """Refuse weights with tensors missing: the libraries would fill the gap with noise and say so in a log only.

    Counted, not compared by name, since the libraries rename tensors between versions.
    """
    module = getattr(pipeline, component)
    if not isinstance(module, torch.nn.Module):
        return
    refuse_gaps(module, folder / component, weight_files(folder / component, component, variant))


def refuse_gaps(module: torch.nn.Module, place: Path, files: list[Path]) -> None:
    names = {name for file in files for name in read_header(file) if not name.endswith("position_ids")}
    needed = len(list(module.parameters()))
    if len(names) < needed:
        raise CheckpointError(
            f"{place} holds {len(names)} tensors, and its config.json describes a network of {needed}; fetch it again."
        )


def refuse_unfilled(pipeline: Any) -> None:
    """Refuse a network of which the checkpoint did not fill every weight."""
    for component, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            unfilled = [name for name, weight in module.named_parameters() if weight.is_meta]
            if unfilled:
                raise CheckpointError(
                    f"the checkpoint holds no {component}.{unfilled[0]} ({len(unfilled)} tensors are missing); fetch it"
                    " again, and check that its configuration is that of its network."
                )
