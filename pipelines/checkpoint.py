"""Looking at a checkpoint before it is loaded: is it all there, safetensors only, and how big is it? No torch here."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import CheckpointError, IncompleteCheckpoint
from pipelines.headers import read_header, read_json
from pipelines.layouts import CLASSES, LAYOUTS, STEMS, UNUSED, WEIGHTED
from pipelines.samplers import Prediction, scheduler_classes

_PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
# By these a configuration names code of its own, or has others' code fetched.
_CODE_KEYS = frozenset({"auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code"})
# By these it chooses a kernel: one of the library's own ("sdpa"), or code from a hub repository ("owner/name").
_KERNEL_KEY = re.compile(r"_?(attn|experts)_implementation(_internal)?")


@dataclass(frozen=True)
class CheckpointSize:
    """How much a checkpoint holds: files, bytes on disk and number of parameters."""

    files: int
    disk_bytes: int
    parameters: int

    def __add__(self, other: "CheckpointSize") -> "CheckpointSize":
        return CheckpointSize(
            self.files + other.files, self.disk_bytes + other.disk_bytes, self.parameters + other.parameters
        )


def inspect_checkpoint(
    path: Path, pipeline_class: str, variant: str | None = None, left_out: Collection[str] = ()
) -> CheckpointSize:
    """Check a diffusers folder or a single .safetensors file without loading it.

    Args:
        path: the folder or file.
        pipeline_class: the diffusers pipeline that `model_index.json` must name.
        variant: only the weight files of this variant ("fp16") count, where they exist.
        left_out: components that will not be loaded from here and may be missing.

    Raises:
        CheckpointError: naming the file, what is wrong with it, and the remedy.
    """
    try:
        if not path.exists():
            raise CheckpointError(
                f"{path} does not exist; correct `source` in models.toml or put the checkpoint there."
            )
        if path.is_file():
            return measure([_single_file(path, pipeline_class)])
        index = inspect_index(path, pipeline_class, left_out)
        return measure(list(folder_weights(path, index, variant, left_out).values()))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def inspect_index(folder: Path, pipeline_class: str, left_out: Collection[str] = ()) -> dict[str, Any]:
    """Check a diffusers folder's model_index.json and that no component brings code; returns the index.

    Raises:
        CheckpointError: another pipeline, an unknown class, a missing folder, or code.
    """
    file = folder / "model_index.json"
    if not file.exists():
        raise CheckpointError(f"{folder} has no model_index.json, so it is not a diffusers checkpoint folder.")
    index = read_json(file)
    if index.get("_class_name") != pipeline_class:
        raise CheckpointError(
            f"{file} is of class {index.get('_class_name')!r}, not {pipeline_class}; set the `family` in models.toml"
            " that fits it."
        )
    refuse_code(folder)
    for component in LAYOUTS[pipeline_class].required if pipeline_class in LAYOUTS else ():
        if not isinstance(index.get(component), list) or index[component][:1] == [None]:
            raise CheckpointError(f"{file} names no {component!r}, without which {pipeline_class} cannot work.")
    for component, value in index.items():
        if component.startswith("_") or value == [None, None]:
            continue
        if not isinstance(value, list):
            if component in CLASSES:
                raise CheckpointError(
                    f"{file}: component {component!r} must be [library, class]; fetch the file again."
                )
            continue
        _check_class(file, pipeline_class, component, value)
        if component not in UNUSED and component not in left_out:
            if not (folder / component).is_dir():
                raise IncompleteCheckpoint(
                    f"{folder} lacks the folder {component!r} that its model_index.json promises."
                )
            refuse_code(folder / component)
    return index


def _check_class(file: Path, pipeline_class: str, component: str, value: list[Any]) -> None:
    library, classes = CLASSES.get(component, ("", frozenset()))
    if component == "scheduler":
        library = "diffusers"
        kinds = [LAYOUTS[pipeline_class].prediction] if pipeline_class in LAYOUTS else list(Prediction)
        classes = frozenset().union(*(scheduler_classes(kind) for kind in kinds))
    if len(value) != 2 or value[0] != library or not isinstance(value[1], str) or value[1] not in classes:
        known = f"one of {library}: {', '.join(sorted(classes))}" if classes else "nothing that is known here"
        raise CheckpointError(
            f"{file}: component {component!r} names {str(value)[:200]}, which is not a known safe class; it may be"
            f" {known}."
        )


def refuse_code(folder: Path) -> None:
    """Refuse a folder that brings Python or a configuration that points to some; nothing here would ever run it.

    Raises:
        CheckpointError: naming the file.
    """
    for file in sorted(folder.glob("*.py")):
        raise CheckpointError(
            f"{file} is code, and checkpoints with code are refused; remove it if you can do without."
        )
    for file in sorted(folder.glob("*.json")):
        # The others are weights' indexes and vocabularies: long, and nobody looks for code in them.
        if file.name.endswith("config.json") or file.name == "model_index.json":
            for key in _keys_to_code(read_json(file)):
                raise CheckpointError(f"{file} points to code with {key!r}, and checkpoints with code are refused.")


def _keys_to_code(config: Any) -> Iterator[str]:
    """The keys, at any depth, that point a library to code."""
    nested = [config]
    for found in nested:  # grows as it is gone through
        if isinstance(found, list):
            nested.extend(found)
        elif isinstance(found, dict):
            nested.extend(found.values())
            for key, value in found.items():
                if (key in _CODE_KEYS and value is not None) or (_KERNEL_KEY.fullmatch(key) and "/" in str(value)):
                    yield key


def folder_weights(
    folder: Path, index: Mapping[str, Any], variant: str | None = None, left_out: Collection[str] = ()
) -> dict[str, Path]:
    """The weight files of a diffusers folder that are loaded, by their names in it.

    Raises:
        CheckpointError: as of `weight_files`.
    """
    components = [name for name in WEIGHTED if (index.get(name) or [None])[0] and name not in left_out]
    files = [file for name in components for file in weight_files(folder / name, name, variant)]
    return {file.relative_to(folder).as_posix(): file for file in files}


def weight_files(place: Path, component: str, variant: str | None = None) -> list[Path]:
    """The safetensors files of a component that diffusers would load: one, or the shards that an index lists.

    Args:
        place: the component's folder.
        component: its name in a pipeline, which decides how its library names the files.
        variant: the files of this variant, or the plain ones where it has none.

    Raises:
        CheckpointError: only pickles, only another variant, shards missing, or no weights at all.
    """
    _refuse_pickles(place)
    stem = STEMS[CLASSES[component][0]]
    for kind in ([variant] if variant else []) + [None]:
        middle = f".{kind}" if kind else ""
        index = place / f"{stem}.safetensors.index{middle}.json"
        whole = place / f"{stem}{middle}.safetensors"
        if index.exists():
            return _shards(index)
        if whole.exists():
            return [whole]
    others = {
        match[1] for file in place.iterdir() if (match := re.fullmatch(rf"{stem}\.(\w+)\.safetensors", file.name))
    }
    remedy = f'; set variant = "{min(others)}" in models.toml' if others else ""
    raise IncompleteCheckpoint(f"{place} holds no weights {stem}.safetensors{remedy}.")


def _shards(index: Path) -> list[Path]:
    """The files an index of shards names, each of which must be a safetensors file beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} lists no weights; fetch it again.")
    files = []
    for shard in sorted({str(name) for name in weight_map.values()}):
        if not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise CheckpointError(f"{index} points to {shard[:200]!r}, which is not a .safetensors file beside it.")
        if not (index.parent / shard).exists():
            raise IncompleteCheckpoint(f"{index.parent} lacks {shard!r}, which {index.name} promises; fetch it again.")
        files.append(index.parent / shard)
    return files


def _refuse_pickles(place: Path) -> None:
    """Weights that exist only as a pickle are refused by name, so that the remedy can be; none is ever opened."""
    if any(place.glob("*.safetensors")):
        return
    for file in sorted(place.iterdir()):
        if file.suffix.lower() in _PICKLES or file.name.endswith(".bin.index.json"):
            raise CheckpointError(f"{file} is a pickle, which can run code; convert it to .safetensors.")


def _single_file(path: Path, pipeline_class: str) -> Path:
    """A checkpoint in one file, if it is safetensors and holds the network of this pipeline."""
    refuse_other_formats(path)
    tensors = read_header(path)
    holds = [name for name, layout in LAYOUTS.items() if _begins(tensors, layout.network)]
    if pipeline_class in LAYOUTS and pipeline_class not in holds:
        seen = f"the network of {holds[0]}" if holds else "no network in the original single-file layout"
        raise CheckpointError(
            f"{path} holds {seen}, not that of {pipeline_class}; set the `family` in models.toml that fits it, and for"
            " a diffusers checkpoint give its whole folder as `source`."
        )
    return path


def refuse_other_formats(file: Path) -> None:
    """Raise CheckpointError for a file whose name is not that of a safetensors file."""
    if file.suffix != ".safetensors":
        raise CheckpointError(f"{file} is not a .safetensors file; other formats can run code and are refused.")


def parts_lacking(file: Path, pipeline_class: str) -> list[str]:
    """The components, network apart, that a single-file checkpoint does not hold."""
    tensors = read_header(file)
    parts = LAYOUTS[pipeline_class].parts
    return [component for component, prefixes in parts.items() if not _begins(tensors, prefixes)]


def _begins(tensors: Mapping[str, Any], prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in tensors)


def measure(files: list[Path]) -> CheckpointSize:
    """How much these safetensors files hold together."""
    parameters = sum(math.prod(tensor["shape"]) for file in files for tensor in read_header(file).values())
    return CheckpointSize(len(files), sum(file.stat().st_size for file in files), parameters)
