"""What the checkpoints of each pipeline consist of: components, their classes, and their names in a single file."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.samplers import Prediction

CLASSES: dict[str, tuple[str, frozenset[str]]] = {
    "unet": ("diffusers", frozenset({"UNet2DConditionModel"})),
    "transformer": ("diffusers", frozenset({"SD3Transformer2DModel"})),
    "vae": ("diffusers", frozenset({"AutoencoderKL"})),
    "text_encoder": ("transformers", frozenset({"CLIPTextModel", "CLIPTextModelWithProjection"})),
    "text_encoder_2": ("transformers", frozenset({"CLIPTextModelWithProjection"})),
    "text_encoder_3": ("transformers", frozenset({"T5EncoderModel"})),
    "tokenizer": ("transformers", frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})),
    "tokenizer_2": ("transformers", frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})),
    "tokenizer_3": ("transformers", frozenset({"T5Tokenizer", "T5TokenizerFast"})),
    "image_encoder": ("transformers", frozenset({"CLIPVisionModelWithProjection", "SiglipVisionModel"})),
    "feature_extractor": ("transformers", frozenset({"CLIPImageProcessor", "SiglipImageProcessor"})),
}
"""The library and the only classes a checkpoint may name, by component; others would be somebody's code."""

UNUSED = frozenset({"image_encoder", "feature_extractor"})
"""The components a checkpoint may list that are not used here."""

WEIGHTED = tuple(name for name in CLASSES if name not in UNUSED and "tokenizer" not in name)
"""The components whose weights are loaded."""

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""How each library names its weight files."""


@dataclass(frozen=True)
class Layout:
    """What belongs to the checkpoints of one diffusers pipeline.

    Attributes:
        prediction: what its network predicts, which decides the schedulers it may name.
        required: the components without which it makes no picture.
        network: what only its own network's tensors begin with in the original, single-file layout.
        parts: what the other components' tensors begin with there.
    """

    prediction: Prediction
    required: tuple[str, ...]
    network: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]


_VAE_PARTS = ("first_stage_model.", "vae.")
_CLIPS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
LAYOUTS = {
    "StableDiffusionXLPipeline": Layout(
        Prediction.DIFFUSION,
        ("unet", "vae", "scheduler", *_CLIPS),
        ("model.diffusion_model.input_blocks.",),
        {
            "vae": _VAE_PARTS,
            "text_encoder": ("conditioner.embedders.0.transformer.",),
            "text_encoder_2": ("conditioner.embedders.1.model.",),
        },
    ),
    "StableDiffusion3Pipeline": Layout(
        Prediction.FLOW,
        ("transformer", "vae", "scheduler", *_CLIPS),
        ("model.diffusion_model.joint_blocks.", "joint_blocks."),
        {
            "vae": _VAE_PARTS,
            "text_encoder": ("text_encoders.clip_l.",),
            "text_encoder_2": ("text_encoders.clip_g.",),
            "text_encoder_3": ("text_encoders.t5xxl.",),
        },
    ),
}
