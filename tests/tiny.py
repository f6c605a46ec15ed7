"""Tiny random checkpoints of the real architectures, in diffusers' layout: every class is real, only small."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

SIZE = 32
"""The tiny models' default side in pixels; their VAEs shrink by 2."""


def _bytes_alphabet() -> list[str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows single bytes only."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = _bytes_alphabet()
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """A T5-like tokenizer over single characters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    characters = ["<pad>", "</s>", "<unk>", *(chr(code) for code in range(32, 127))]
    pieces = [(character, 0.0 if index < 3 else -float(index)) for index, character in enumerate(characters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=64)


def _clip_config(dim: int, act: str = "quick_gelu") -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=514,
        max_position_embeddings=77,
        projection_dim=dim,
        hidden_act=act,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def _vae(channels: int, **config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32),
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **config,
    )


def build_sdxl(folder: Path, seed: int = 0) -> Path:
    """Save a tiny SDXL checkpoint."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 1),
        cross_attention_dim=48,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 32,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        num_train_timesteps=1000,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(4, scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(_clip_config(16)),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(32, "gelu")),
        tokenizer=clip_tokenizer(folder / "scratch"),
        tokenizer_2=clip_tokenizer(folder / "scratch"),
        unet=unet,
        scheduler=scheduler,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def build_sd3(folder: Path, seed: int = 0, t5: bool = False) -> Path:
    """Save a tiny checkpoint: SD3 without its T5 encoder, or SD3.5 with it, whose transformer has parts of its own."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=48,
        pos_embed_max_size=32,
        qk_norm="rms_norm" if t5 else None,
        dual_attention_layers=(0,) if t5 else (),
    )
    t5_config = T5Config(vocab_size=128, d_model=64, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(4, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=CLIPTextModelWithProjection(_clip_config(16)),
        tokenizer=clip_tokenizer(folder / "scratch"),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(32, "gelu")),
        tokenizer_2=clip_tokenizer(folder / "scratch"),
        text_encoder_3=T5EncoderModel(t5_config) if t5 else None,
        tokenizer_3=t5_tokenizer() if t5 else None,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
