"""Writing a diffusers folder as one file in the original layout: what diffusers' single-file loader has to undo.

The layouts are those of Stability AI's own code: generative-models for SDXL, sd3-ref for SD3.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


PARTS = ("text_encoder", "text_encoder_2", "vae")


def write_sdxl(folder: Path, file: Path, parts: Iterable[str] = PARTS) -> Path:
    """Write an SDXL folder's UNet and the parts named."""
    prefixed = {
        "text_encoder": ("conditioner.embedders.0.transformer.", _clip),
        "text_encoder_2": ("conditioner.embedders.1.model.", _open_clip),
        "vae": ("first_stage_model.", _vae),
    }
    tensors = _under("model.diffusion_model.", _unet(folder / "unet"))
    for part in parts:
        prefix, read = prefixed[part]
        tensors |= _under(prefix, read(folder / part))
    return _write(tensors, file)


def write_sd3(folder: Path, file: Path, parts: Iterable[str] = PARTS) -> Path:
    """Write an SD3 folder's transformer and the parts named; the published files of SD3.5 hold only the VAE besides."""
    names = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
    tensors = _under("model.diffusion_model.", _transformer(folder / "transformer"))
    for part in parts:
        if part == "vae":
            tensors |= _under("first_stage_model.", _vae(folder / "vae"))
        else:
            read = _read(folder / part) if part == "text_encoder_3" else _clip(folder / part)
            tensors |= _under(f"text_encoders.{names[part]}.transformer.", read)
    return _write(tensors, file)


def write_vae(folder: Path, file: Path) -> Path:
    """Write a VAE alone, as such files are shared: the original names without a prefix."""
    return _write(_vae(folder), file)


def make_first_projection_identity(folder: Path) -> None:
    """SD3's file has no place for CLIP-L's projection, since it is the identity; make a tiny model's one that too."""
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["text_projection.weight"] = torch.eye(len(tensors["text_projection.weight"]))
    save_file(tensors, file, metadata={"format": "pt"})


def _read(component: Path) -> Tensors:
    (file,) = component.glob("*.safetensors")
    return load_file(file)


def _write(tensors: Tensors, file: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _renamed(name: str, table: dict[str, str]) -> str:
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    return name


_RESNET = {
    r"norm1\.": "in_layers.0.",
    r"conv1\.": "in_layers.2.",
    r"time_emb_proj\.": "emb_layers.1.",
    r"norm2\.": "out_layers.0.",
    r"conv2\.": "out_layers.3.",
    r"conv_shortcut\.": "skip_connection.",
}
_UNET = {
    r"^time_embedding\.linear_1": "time_embed.0",
    r"^time_embedding\.linear_2": "time_embed.2",
    r"^add_embedding\.linear_1": "label_emb.0.0",
    r"^add_embedding\.linear_2": "label_emb.0.2",
    r"^conv_in": "input_blocks.0.0",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
}


def _unet(component: Path) -> Tensors:
    """The original numbers all blocks of a side through; a resnet, its attention and a resampler share a number."""
    config = json.loads((component / "config.json").read_text())
    layers = config["layers_per_block"]
    attends = {
        f"{side}_blocks.{index}": "CrossAttn" in kind
        for side in ("down", "up")
        for index, kind in enumerate(config[f"{side}_block_types"])
    }
    return {_unet_name(name, layers, attends): tensor for name, tensor in _read(component).items()}


def _unet_name(name: str, layers: int, attends: dict[str, bool]) -> str:
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name):
        side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        first = block * (layers + 1) + (1 if side == "down" else 0)
        blocks = "input_blocks" if side == "down" else "output_blocks"
        if kind == "resnets":
            return f"{blocks}.{first + layer}.0.{_renamed(rest, _RESNET)}"
        if kind == "attentions":
            return f"{blocks}.{first + layer}.1.{rest}"
        if kind == "downsamplers":
            return f"{blocks}.{first + layers}.0.{rest.replace('conv.', 'op.')}"
        return f"{blocks}.{first + layers}.{2 if attends[f'up_blocks.{block}'] else 1}.{rest}"
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        if match[1] == "attentions":
            return f"middle_block.1.{match[3]}"
        return f"middle_block.{2 * int(match[2])}.{_renamed(match[3], _RESNET)}"
    return _renamed(name, _UNET)


_VAE = {
    r"conv_norm_out": "norm_out",
    r"conv_shortcut": "nin_shortcut",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0": "mid.attn_1",
    r"attn_1\.group_norm": "attn_1.norm",
    r"attn_1\.to_([qkv])": r"attn_1.\1",
    r"attn_1\.to_out\.0": "attn_1.proj_out",
    r"down_blocks\.(\d+)\.resnets": r"down.\1.block",
    r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
    r"(up\.\d+)\.resnets": r"\1.block",
    r"(up\.\d+)\.upsamplers\.0": r"\1.upsample",
}


def _vae(component: Path) -> Tensors:
    """The original counts the decoder's blocks from the picture's end, and its attention is a 1x1 convolution."""
    last = len(json.loads((component / "config.json").read_text())["up_block_types"]) - 1
    original = {}
    for name, tensor in _read(component).items():
        turned = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", name)
        turned = _renamed(turned, _VAE)
        convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", turned)
        original[turned] = tensor[:, :, None, None] if convolution else tensor
    return original


def _clip(component: Path) -> Tensors:
    """OpenAI's CLIP as transformers names it; newer versions drop a prefix that the files all have."""
    own = ("text_model.", "text_projection.")
    return {name if name.startswith(own) else f"text_model.{name}": t for name, t in _read(component).items()}


_OPEN_CLIP = {
    r"^text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"^text_model\.embeddings\.token_embedding": "token_embedding",
    r"^text_model\.final_layer_norm": "ln_final",
    r"^text_model\.encoder\.layers\.": "transformer.resblocks.",
    r"layer_norm([12])": r"ln_\1",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
    r"self_attn": "attn",
}


def _open_clip(component: Path) -> Tensors:
    """OpenCLIP's text tower: queries, keys and values in one matrix, the projection the other way round."""
    tensors = _clip(component)
    original = {"text_projection": tensors.pop("text_projection.weight").T}
    for name in list(tensors):
        if match := re.match(r"(.+self_attn\.)q_proj\.(weight|bias)", name):
            joined = torch.cat([tensors.pop(f"{match[1]}{letter}_proj.{match[2]}") for letter in "qkv"])
            original[_renamed(f"{match[1]}in_proj_{match[2]}", _OPEN_CLIP)] = joined
    return original | {_renamed(name, _OPEN_CLIP): tensor for name, tensor in tensors.items()}


_SD3 = {
    r"^pos_embed\.pos_embed": "pos_embed",
    r"^pos_embed\.proj": "x_embedder.proj",
    r"^time_text_embed\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r"^time_text_embed\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r"^time_text_embed\.text_embedder\.linear_1": "y_embedder.mlp.0",
    r"^time_text_embed\.text_embedder\.linear_2": "y_embedder.mlp.2",
    r"^proj_out": "final_layer.linear",
    r"^norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"^transformer_blocks": "joint_blocks",
    r"norm1\.linear": "x_block.adaLN_modulation.1",
    r"norm1_context\.linear": "context_block.adaLN_modulation.1",
    r"ff\.net\.0\.proj": "x_block.mlp.fc1",
    r"ff\.net\.2": "x_block.mlp.fc2",
    r"ff_context\.net\.0\.proj": "context_block.mlp.fc1",
    r"ff_context\.net\.2": "context_block.mlp.fc2",
    r"(attn2?)\.to_out\.0": r"x_block.\1.proj",
    r"attn\.to_add_out": "context_block.attn.proj",
    r"(attn2?)\.norm_([qk])": r"x_block.\1.ln_\2",
    r"attn\.norm_added_([qk])": r"context_block.attn.ln_\1",
}
_JOINED = {
    "x_block.attn": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def _transformer(component: Path) -> Tensors:
    """SD3's transformer: queries, keys and values in one matrix, and the last norms with shift before scale."""
    tensors = _read(component)
    last = max(int(match[1]) for name in tensors if (match := re.match(r"transformer_blocks\.(\d+)", name)))
    original: Tensors = {}
    for index in range(last + 1):
        for block, letters in _JOINED.items():
            for ending in ("weight", "bias"):
                names = [f"transformer_blocks.{index}.{letter}.{ending}" for letter in letters]
                if names[0] in tensors:  # only some blocks of SD3.5 have a second attention
                    joined = torch.cat([tensors.pop(name) for name in names])
                    original[f"joint_blocks.{index}.{block}.qkv.{ending}"] = joined
    for name, tensor in tensors.items():
        swapped = name.startswith(("norm_out.linear", f"transformer_blocks.{last}.norm1_context"))
        original[_renamed(name, _SD3)] = torch.cat(tensor.chunk(2)[::-1]) if swapped else tensor
    return original
