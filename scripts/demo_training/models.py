"""Owns the shapes of the two checkpoints: text encoders, denoisers and schedulers."""

from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .autoencoder import LATENT_CHANNELS
from .tokens import LENGTH, new_tokenizer

TEXT_WIDTH = 64
TIME_ID_WIDTH = 16
NATIVE_LATENT_SIZE = 32
UNET_CHANNELS = (48, 96, 112)
UNET_HEADS = (2, 3, 4)
TRANSFORMER_WIDTH = 128
TRANSFORMER_LAYERS = 7
# Broad colours show through nearly pure noise, so training and sampling spend more time there: SD3's own value.
FLOW_SHIFT = 3.0


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def new_sdxl() -> nn.ModuleDict:
    """The trained parts of demo-sdxl, without the autoencoder."""
    config = _text_config(new_tokenizer())
    unet = UNet2DConditionModel(
        sample_size=NATIVE_LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        transformer_layers_per_block=1,
        # In diffusers this is the number of heads, whatever its name says; SDXL's own config does the same.
        attention_head_dim=UNET_HEADS,
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * TIME_ID_WIDTH,
        norm_num_groups=16,
    )
    nn.init.zeros_(unet.conv_out.weight)
    return nn.ModuleDict(
        {
            "text_encoder": CLIPTextModel(config),
            "text_encoder_2": CLIPTextModelWithProjection(config),
            "denoiser": unet,
        }
    )


def new_sd3() -> nn.ModuleDict:
    """The trained parts of demo-sd3, without the autoencoder."""
    config = _text_config(new_tokenizer())
    transformer = SD3Transformer2DModel(
        sample_size=NATIVE_LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=TRANSFORMER_LAYERS,
        attention_head_dim=64,
        num_attention_heads=TRANSFORMER_WIDTH // 64,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=TRANSFORMER_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
    )
    _start_as_identity(transformer)
    return nn.ModuleDict(
        {
            "text_encoder": CLIPTextModelWithProjection(config),
            "text_encoder_2": CLIPTextModelWithProjection(config),
            "denoiser": transformer,
        }
    )


def _start_as_identity(transformer: SD3Transformer2DModel) -> None:
    """Gates of zero at first (adaLN-zero of the DiT paper, arXiv 2212.09748): diffusers leaves them random."""
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            nn.init.zeros_(norm.linear.weight)
            nn.init.zeros_(norm.linear.bias)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)


def sdxl_scheduler() -> EulerDiscreteScheduler:
    """SDXL's own settings."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
    )


def sd3_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """SD3's own settings."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=FLOW_SHIFT)
