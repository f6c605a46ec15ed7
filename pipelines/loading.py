"""Loading a checkpoint through diffusers: concrete pipeline classes, safetensors only, no remote code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipelines.catalog import ModelEntry
from pipelines.checkpoint import inspect_checkpoint
from pipelines.errors import CheckpointError


def load_pipeline(pipeline_class: Any, entry: ModelEntry, dtype: torch.dtype, **components: Any) -> Any:
    """Load an entry's diffusers pipeline on the CPU.

    Args:
        pipeline_class: the concrete diffusers class, such as StableDiffusionXLPipeline.
        entry: where the checkpoint lies; a local one is inspected first and opens no connection.
        dtype: of the weights.
        components: given in place of the checkpoint's own; None leaves one out.

    Raises:
        CheckpointError: with the file at fault and the remedy.
    """
    _quiet()
    if entry.local is not None:
        inspect_checkpoint(entry.local, pipeline_class.__name__, entry.variant)
    keywords: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **components}
    if (vae := entry.vae) is not None:
        keywords["vae"] = _explained(entry.name, lambda: _load_vae(vae, dtype))
    if entry.source.endswith(".safetensors"):
        return _explained(entry.name, lambda: _load_single_file(pipeline_class, entry, keywords))
    return _explained(entry.name, lambda: _load_folder(pipeline_class, entry, keywords))


def _load_folder(pipeline_class: Any, entry: ModelEntry, keywords: dict[str, Any]) -> Any:
    keywords |= {"variant": entry.variant, "revision": entry.revision}
    if entry.local is not None:
        return pipeline_class.from_pretrained(entry.source, local_files_only=True, **keywords)
    try:
        return pipeline_class.from_pretrained(entry.source, local_files_only=True, **keywords)
    except OSError:  # not in the hub's cache yet
        return pipeline_class.from_pretrained(entry.source, **keywords)


def _load_single_file(pipeline_class: Any, entry: ModelEntry, keywords: dict[str, Any]) -> Any:
    del keywords["use_safetensors"]  # the file's own suffix says it
    config = entry.config or ""
    return pipeline_class.from_single_file(
        entry.source, config=config, local_files_only=Path(config).is_absolute(), **keywords
    )


def _load_vae(source: str, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKL

    local = Path(source).is_absolute()
    if source.endswith(".safetensors"):
        return AutoencoderKL.from_single_file(source, dtype=dtype, local_files_only=local)
    return AutoencoderKL.from_pretrained(source, dtype=dtype, use_safetensors=True, local_files_only=local)


def _explained(name: str, load: Callable[[], Any]) -> Any:
    """Turn whatever a library raises while loading into one CheckpointError."""
    try:
        return load()
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, ImportError) as error:
        raise CheckpointError(f"model {name!r} cannot be loaded: {str(error).strip()[:600]}") from error


def _quiet() -> None:
    """The libraries draw a progress bar per file and warn about their own defaults; our own log says what is loaded."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
