"""Loading a checkpoint through diffusers: concrete pipeline classes, safetensors only, no remote code."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipelines.catalog import ModelEntry
from pipelines.checkpoint import inspect_checkpoint, inspect_index, parts_lacking, weight_files
from pipelines.completeness import refuse_gaps, refuse_incomplete, refuse_unfilled
from pipelines.default_dtype import own_default_dtype
from pipelines.errors import CheckpointError
from pipelines.headers import read_header
from pipelines.layouts import UNUSED, WEIGHTED
from pipelines.progress import LoadStage, Progress, read_through, untold
from pipelines.sources import decoder_files, preview_files, vae_files

log = logging.getLogger(__name__)

_TEXTS = ("*.json", "*/*.json", "*/*.txt", "*/*.model")
"""What a pipeline is configured with: everything but its weights."""


def load_pipeline(
    pipeline_class: Any, entry: ModelEntry, dtype: torch.dtype, progress: Progress = untold, **components: Any
) -> Any:
    """Load an entry's diffusers pipeline on the CPU. On any thread, beside the one that computes.

    Args:
        pipeline_class: the concrete diffusers class, such as StableDiffusionXLPipeline.
        entry: where the checkpoint lies; a local one, or one in the hub's cache, opens no connection.
        dtype: of the weights.
        progress: told the stages up to READING.
        components: given in place of the checkpoint's own; None leaves one out.

    Raises:
        CheckpointError: with the file at fault and the remedy.
    """
    # These would be loaded, and nothing here uses them.
    components = dict.fromkeys(UNUSED) | components
    try:
        load = _load_single_file if entry.single_file else _load_folder
        progress(LoadStage.CHECKING, 0.0)
        with own_default_dtype():
            pipeline = load(pipeline_class, entry, dtype, progress, components)
        refuse_unfilled(pipeline)
        _read_in(pipeline)
        return pipeline
    except CheckpointError:
        raise
    except Exception as error:
        # The libraries raise whatever comes; a checkpoint that they cannot load is one thing to us.
        reason = str(error).strip()[:600] or type(error).__name__
        raise CheckpointError(f"model {entry.name!r} cannot be loaded: {reason}") from error


def _load_folder(
    pipeline_class: Any, entry: ModelEntry, dtype: torch.dtype, progress: Progress, components: dict[str, Any]
) -> Any:
    left_out = {*components, *entry.left_out}
    name = pipeline_class.__name__
    if entry.local is not None:
        inspect_checkpoint(entry.local, name, entry.variant, left_out)
        folder = entry.local
    else:
        download = partial(
            pipeline_class.download,
            entry.source,
            revision=entry.revision,
            variant=entry.variant,
            use_safetensors=True,
            **dict.fromkeys(left_out),
        )
        folder = _from_hub(download, lambda path: inspect_checkpoint(path, name, entry.variant, left_out), progress)
        if entry.vae is not None and entry.vae.endswith(".safetensors"):
            _fetch_vae_config(entry, folder, progress)
    given = _override_vae(entry, folder, dtype, progress) | components
    index = inspect_index(folder, name, left_out)
    parts = [part for part in WEIGHTED if part not in given and (index.get(part) or [None])[0]]
    progress(LoadStage.CHECKING, 1.0)
    read_through([file for part in parts for file in weight_files(folder / part, part, entry.variant)], progress)
    pipeline = pipeline_class.from_pretrained(
        str(folder), dtype=dtype, variant=entry.variant, use_safetensors=True, local_files_only=True, **given
    )
    for part in parts:
        refuse_incomplete(pipeline, part, folder, entry.variant)
    return pipeline


def _load_single_file(
    pipeline_class: Any, entry: ModelEntry, dtype: torch.dtype, progress: Progress, components: dict[str, Any]
) -> Any:
    """A file in the original layout; what it does not hold, and every configuration, comes from the `config` folder."""
    file = Path(entry.source)
    inspect_checkpoint(file, pipeline_class.__name__)
    lacking = [part for part in parts_lacking(file, pipeline_class.__name__) if part not in components]
    lacking = [part for part in lacking if part not in entry.left_out]
    folder = _config_folder(pipeline_class, entry, lacking, progress)
    index = inspect_index(folder, pipeline_class.__name__, {*components, *entry.left_out})
    given = _override_vae(entry, folder, dtype, progress) | components
    lacking = [part for part in lacking if index.get(part, [None])[0] is not None]
    progress(LoadStage.CHECKING, 1.0)
    others = [other for part in lacking for other in weight_files(folder / part, part, entry.variant)]
    read_through([file, *others], progress)
    for part in lacking:
        given[part] = _load_part(index[part], folder, part, entry, dtype)
    pipeline = pipeline_class.from_single_file(
        entry.source, config=str(folder), dtype=dtype, local_files_only=True, **given
    )
    for part in lacking:
        refuse_incomplete(pipeline, part, folder, entry.variant)
    for module in pipeline.components.values():
        if hasattr(module, "tie_weights"):
            # T5's embedding has two names and the file one of them; diffusers leaves the other without values.
            module.tie_weights()
    return pipeline


def _config_folder(pipeline_class: Any, entry: ModelEntry, lacking: list[str], progress: Progress) -> Path:
    """The diffusers folder that a single file is configured by, with the weights of the parts it lacks."""
    assert entry.config is not None, "the catalogue refuses a single file without one"

    def check(folder: Path) -> None:
        index = inspect_index(folder, pipeline_class.__name__, entry.left_out)
        for part in lacking:
            if index.get(part, [None])[0] is not None:
                _check_part(folder / part, part, entry)

    if Path(entry.config).is_absolute():
        check(Path(entry.config))
        return Path(entry.config)
    from huggingface_hub import snapshot_download

    middle = f".{entry.variant}" if entry.variant else ""
    weights = [f"{part}/*model{middle}{ending}" for part in lacking for ending in (".safetensors", "-*.safetensors")]
    download = partial(snapshot_download, entry.config, allow_patterns=[*_TEXTS, *weights])
    return _from_hub(download, check, progress)


def _check_part(place: Path, part: str, entry: ModelEntry) -> None:
    try:
        for file in weight_files(place, part, entry.variant):
            read_header(file)
    except (CheckpointError, FileNotFoundError) as error:
        raise CheckpointError(
            f"{entry.source} holds no {part}, so it is taken from the `config` folder, where it cannot be: {error}"
        ) from error


def _load_part(named: list[str], folder: Path, part: str, entry: ModelEntry, dtype: torch.dtype) -> Any:
    """One component of a diffusers folder, of the class that its checked index names."""
    import diffusers
    import transformers

    part_class = getattr({"diffusers": diffusers, "transformers": transformers}[named[0]], named[1])
    place = folder / part
    files = weight_files(place, part, entry.variant)
    variant = entry.variant if entry.variant and all(f".{entry.variant}" in file.name for file in files) else None
    return part_class.from_pretrained(
        str(place), dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
    )


def _override_vae(entry: ModelEntry, folder: Path, dtype: torch.dtype, progress: Progress) -> dict[str, Any]:
    """The VAE that an entry names in place of the checkpoint's own; as a single file, configured as that one is."""
    from diffusers import AutoencoderKL

    if entry.vae is None:
        return {}
    files = vae_files(entry)
    for file in files:
        read_header(file)
    if files and Path(entry.vae).is_file():
        # Without a configuration diffusers would take Stable Diffusion 1's, from the hub.
        config = str(folder / "vae")
        vae = AutoencoderKL.from_single_file(entry.vae, config=config, dtype=dtype, local_files_only=True)
    elif files:
        vae = AutoencoderKL.from_pretrained(entry.vae, dtype=dtype, use_safetensors=True, local_files_only=True)
    else:
        fetch = partial(AutoencoderKL.from_pretrained, entry.vae, dtype=dtype, use_safetensors=True)
        try:
            vae = fetch(local_files_only=True)
        except OSError:  # not in the hub's cache yet
            progress(LoadStage.DOWNLOADING, 0.0)
            vae = fetch()
            progress(LoadStage.DOWNLOADING, 1.0)
    return {"vae": vae}


def _fetch_vae_config(entry: ModelEntry, folder: Path, progress: Progress) -> None:
    """A VAE in one file is configured as the checkpoint's own, of which nothing else is downloaded."""
    from huggingface_hub import hf_hub_download

    # The cache names a snapshot's folder by its commit; the branch may have moved on since.
    fetch = partial(hf_hub_download, entry.source, "vae/config.json", revision=folder.name)
    _from_hub(fetch, lambda file: None, progress)


def _from_hub(fetch: Callable[..., Any], check: Callable[[Path], object], progress: Progress) -> Path:
    """A hub repository's folder in the cache, checked; it is downloaded if it isn't there, or not all of it."""
    try:
        folder = Path(fetch(local_files_only=True))
        check(folder)
    except (OSError, CheckpointError) as lacking:
        progress(LoadStage.DOWNLOADING, 0.0)
        try:
            folder = Path(fetch(local_files_only=False))
        except OSError as unreachable:
            if isinstance(lacking, CheckpointError):
                raise lacking from unreachable
            log.warning("the hub's library says: %s", unreachable)
            raise FileNotFoundError(
                "it is not in the hub's cache and cannot be fetched; check the id's spelling, the connection and, where"
                " a licence must be accepted first, HF_TOKEN."
            ) from unreachable
        progress(LoadStage.DOWNLOADING, 1.0)
        check(folder)
    return folder


def load_preview_decoder(entry: ModelEntry, channels: int, dtype: torch.dtype, progress: Progress = untold) -> Any:
    """The AutoencoderTiny that an entry's previews are drawn by, on the CPU and for inference. On any thread.

    Args:
        channels: of the model's latents.
        progress: told of a download.

    Raises:
        CheckpointError: with what is at fault and the remedy; the libraries raise others.
    """
    from diffusers import AutoencoderTiny
    from huggingface_hub import snapshot_download

    files = preview_files(entry)
    folder = Path(entry.preview)
    if not files:
        wanted = ["config.json", "diffusion_pytorch_model.safetensors"]
        download = partial(snapshot_download, entry.preview, allow_patterns=wanted)
        folder = _from_hub(download, decoder_files, progress)
        files = decoder_files(folder)
    for file in files:
        read_header(file)
    with own_default_dtype():
        decoder = AutoencoderTiny.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, local_files_only=True)
    refuse_gaps(decoder, folder, files)
    if decoder.config.latent_channels != channels:
        raise CheckpointError(
            f"{folder} decodes latents of {decoder.config.latent_channels} channels, and those of model {entry.name!r}"
            f" have {channels}; correct `preview` in models.toml."
        )
    return decoder.requires_grad_(False).eval()


def _read_in(pipeline: Any) -> None:
    """Copy into memory what the libraries only mapped there.

    Else a file that is overwritten would change the weights of a model at work, or, made shorter, end the process.
    """
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            for tensor in (*module.parameters(), *module.buffers()):
                if not tensor.untyped_storage().resizable():  # torch did not allocate it: it is the file's
                    tensor.data = tensor.data.clone()


def quiet_libraries() -> None:
    """The libraries draw a progress bar per file and warn about their own defaults; our own log says what is loaded."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
