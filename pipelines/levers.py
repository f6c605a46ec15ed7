"""The levers of a model: what makes it faster or lighter, and what a quality word stands for. No torch here."""

from dataclasses import dataclass

ATTENTION = ("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math")
"""diffusers' names of torch's own attention kernels, `native` leaving the choice to torch.

diffusers knows more (flash-attn, SageAttention, xformers), but the processors of both families' networks call torch's
function directly and heed no `set_attention_backend`, so those would have no effect.
"""

QUALITY_STEPS = {"low": 0.5, "medium": 1.0, "high": 1.5, "xhigh": 2.0, "max": 2.5}
"""OpenAI's quality words as multiples of the model's default steps."""

QUALITY_TABLES = ("draft", "low", "high", "xhigh", "max")
"""The words that a model may give settings of their own; medium is the model's own settings."""


@dataclass(frozen=True)
class Speed:
    """One `[models.NAME.speed]` table, every default filled in. None is "auto": decided when the model is placed.

    Attributes:
        channels_last: keep convolutions' weights in NHWC order; auto is yes on CUDA only.
        compile: torch.compile the denoiser's repeated blocks.
        cuda_graphs: replay recorded CUDA graphs, one for each shape and row bucket.
        fuse_qkv: one matrix product for query, key and value.
        quantize: "fp8", or None for the weights as they are.
        attention: one of `ATTENTION`.
        vae_tiling: decode in tiles; auto is yes for pictures above `TILED_PIXELS`.
        vae_slicing: decode one picture after the other.
        vae_dtype: "auto" (see `pipelines.speed.vae_dtype`), "float32", "float16" or "bfloat16".
        skip_guidance: the last share of a picture's steps that go without the unconditional row, 0 to 1.
    """

    channels_last: bool | None = None
    compile: bool = False
    cuda_graphs: bool = False
    fuse_qkv: bool = False
    quantize: str | None = None
    attention: str = "native"
    vae_tiling: bool | None = None
    vae_slicing: bool = False
    vae_dtype: str = "auto"
    skip_guidance: float = 0.0


@dataclass(frozen=True)
class Preset:
    """What a quality word stands for with one model; None leaves a setting to the model, steps to `QUALITY_STEPS`."""

    word: str
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    skip_guidance: float | None = None
