"""Owns the export: checkpoints in diffusers' layout, in half precision, at any point of the training."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline
from torch import nn

from .autoencoder import load_autoencoder
from .latents import load_statistics
from .models import new_sd3, new_sdxl, sd3_scheduler, sdxl_scheduler
from .tokens import new_tokenizer
from .training import Environment, averaged_weights, state_path


def export_checkpoints(environment: Environment, out: Path) -> None:
    """Write what has been trained so far; a family without a saved state is left out."""
    for name, build in (("sdxl", sdxl_pipeline), ("sd3", sd3_pipeline)):
        if state_path(environment.work, name).exists():
            pipeline = build(environment)
            for component in pipeline.components.values():
                if isinstance(component, nn.Module):
                    component.to(torch.float16)
            folder = out / f"demo-{name}"
            pipeline.save_pretrained(folder, safe_serialization=True)
            for encoder in ("text_encoder", "text_encoder_2"):
                _widen_when_loaded(folder / encoder / "config.json")
            print(f"export: {folder}", flush=True)


def _widen_when_loaded(path: Path) -> None:
    """Let plain loading give single precision: transformers would keep half, diffusers widens its own parts."""
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


def _autoencoder(environment: Environment, *, shifted: bool) -> AutoencoderKL:
    """The shared autoencoder with the scale of its latents; only SD3 shifts them as well."""
    autoencoder, statistics = load_autoencoder(environment), load_statistics(environment.work)
    autoencoder.register_to_config(
        scaling_factor=1 / statistics.deviation,
        shift_factor=statistics.mean if shifted else None,
    )
    return autoencoder


def sdxl_pipeline(environment: Environment) -> DiffusionPipeline:
    trained = averaged_weights(state_path(environment.work, "sdxl"), new_sdxl())
    return StableDiffusionXLPipeline(
        vae=_autoencoder(environment, shifted=False),
        text_encoder=trained["text_encoder"],
        text_encoder_2=trained["text_encoder_2"],
        tokenizer=new_tokenizer(),
        tokenizer_2=new_tokenizer(),
        unet=trained["denoiser"],
        scheduler=sdxl_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def sd3_pipeline(environment: Environment) -> DiffusionPipeline:
    trained = averaged_weights(state_path(environment.work, "sd3"), new_sd3())
    return StableDiffusion3Pipeline(
        vae=_autoencoder(environment, shifted=True),
        text_encoder=trained["text_encoder"],
        text_encoder_2=trained["text_encoder_2"],
        text_encoder_3=None,
        tokenizer=new_tokenizer(),
        tokenizer_2=new_tokenizer(),
        tokenizer_3=None,
        transformer=trained["denoiser"],
        scheduler=sd3_scheduler(),
    )
