"""Infotext: the line of settings that AUTOMATIC1111 writes into a picture's file, and our own JSON beside it."""

import json
from dataclasses import asdict
from typing import Any

from pipelines.catalog import ModelEntry
from pipelines.request import ImageRequest

_SCHEDULE_LABELS = {
    "automatic": "Automatic",
    "normal": "Normal",
    "sgm_uniform": "SGM Uniform",
    "ddim_uniform": "DDIM Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
}


def infotext(request: ImageRequest, model_hash: str | None = None) -> str:
    """The picture's settings as AUTOMATIC1111 writes them: prompt, negative prompt, one line of `Key: value`.

    Of the model's hash it writes the first ten digits.
    """
    settings: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": _SCHEDULE_LABELS[request.schedule],
        # Every digit, so that reading it back gives the same picture, but 7 and not 7.0.
        "CFG scale": repr(request.guidance_scale).removesuffix(".0"),
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
    }
    if model_hash is not None:
        settings["Model hash"] = model_hash[:10]
    settings["Model"] = request.model
    if request.clip_skip is not None:
        # AUTOMATIC1111 counts from the last layer, diffusers from the one SDXL and SD3 normally use.
        settings["Clip skip"] = request.clip_skip + 2
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items()))
    return "\n".join(lines)


def metadata(request: ImageRequest, entry: ModelEntry, model_hash: str | None = None) -> dict[str, str]:
    """The texts a picture's file carries: `parameters` for everybody, `darkroom` with everything."""
    everything = asdict(request) | {"family": entry.family, "model_hash": model_hash}
    return {
        "parameters": infotext(request, model_hash),
        "darkroom": json.dumps(everything, ensure_ascii=False, sort_keys=True),
    }


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text
