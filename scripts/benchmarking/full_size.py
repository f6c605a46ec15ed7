"""SDXL and SD3-medium at full size, from their configurations with random weights on the device."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

from pipelines.catalog import ModelEntry
from pipelines.denoising import Conditioning
from pipelines.families import families, family_facts
from pipelines.family import Family
from pipelines.levers import Speed
from pipelines.models_toml import load_catalog
from pipelines.request import ImageRequest, TokenCount

CATALOG = Path(__file__).with_name("full_size.toml")
SPREAD = 0.02
"""Standard deviation of the weights: large enough for no denormal numbers, small enough for no infinite ones."""

CLIP_TOKENS = 77
T5_TOKENS = 256


def unet() -> Any:
    """SDXL base 1.0's UNet: 2,567 million parameters."""
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        # In diffusers this is the number of heads, whatever its name says.
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def transformer() -> Any:
    """SD3-medium's transformer, 2,028 million parameters."""
    return SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=24,
        num_attention_heads=24,
        attention_head_dim=64,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    )


def autoencoder(latent_channels: int, **config: Any) -> Any:
    """The VAE of both, but for its latent channels and their scale."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=latent_channels,
        sample_size=1024,
        **config,
    )


def _sdxl_parts() -> dict[str, Any]:
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    )
    with torch.device("meta"):
        networks = {"unet": unet(), "vae": autoencoder(4, scaling_factor=0.13025, force_upcast=True)}
    return networks | {"scheduler": scheduler, "config": SimpleNamespace(force_zeros_for_empty_prompt=True)}


def _sd3_parts() -> dict[str, Any]:
    with torch.device("meta"):
        vae = autoencoder(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False)
        networks = {"transformer": transformer(), "vae": vae}
    return networks | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"sdxl": _sdxl_parts, "sd3": _sd3_parts}
"""The components of each pipeline; the networks have shapes alone, until they are filled."""

TEXT = {"sdxl": (CLIP_TOKENS, 2048, 1280), "sd3": (CLIP_TOKENS + T5_TOKENS, 4096, 2048)}
"""Text tokens, their width, and the width of the pooled text."""


def full_size_entry(name: str) -> ModelEntry:
    """The catalogue entry of a model at full size."""
    return load_catalog(CATALOG, family_facts()).resolve(name)


def build_family(name: str, device: torch.device, dtype: torch.dtype, speed: Speed | None = None) -> Family:
    """A family at full size, with the levers of `speed`. It has no text encoders: its conditionings are random too."""
    parts = PARTS[name]()
    torch.manual_seed(0)  # the same weights each time, so that what they make can be compared
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            fill(part, device, dtype)
    # What takes the place of a text encoder is never called.
    encoders = {key: torch.nn.Identity() for key in ("text_encoder", "text_encoder_2", "text_encoder_3")}
    tokenizers = {key: None for key in ("tokenizer", "tokenizer_2", "tokenizer_3")}
    pipeline = SimpleNamespace(**parts, **encoders, **tokenizers, vae_scale_factor=8)
    entry = replace(full_size_entry(name), speed=speed or Speed())
    family_class: Any = families()[entry.family]
    family = family_class(entry, pipeline, device, dtype)
    conditioning = _conditioning(name, device, dtype)
    family.encode = lambda requests: [conditioning(request) for request in requests]
    family.place()
    return family


def fill(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Bring a module that has shapes alone onto a device, with random values."""
    for child in module.modules():
        for name, tensor in chain(child._parameters.items(), child._buffers.items()):
            if tensor is not None and tensor.is_floating_point():
                fresh = torch.empty_like(tensor, device=device, dtype=dtype).normal_(std=SPREAD)
                if name in child._parameters:
                    child._parameters[name] = torch.nn.Parameter(fresh, requires_grad=False)
                else:
                    child._buffers[name] = fresh


def _conditioning(name: str, device: torch.device, dtype: torch.dtype) -> Callable[[ImageRequest], Conditioning]:
    tokens, width, pooled = TEXT[name]

    def random(request: ImageRequest) -> Conditioning:
        generator = torch.Generator().manual_seed(request.seed)
        text = torch.randn(request.rows, tokens, width, generator=generator).to(device, dtype)
        pool = torch.randn(request.rows, pooled, generator=generator).to(device, dtype)
        return Conditioning(text, pool, TokenCount(tokens), TokenCount())

    return random
