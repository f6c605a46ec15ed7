"""Owns the model cards: what a demo checkpoint is, how it was made, what it scored, what it cannot do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .training import state_path

MADE_OF = {
    "demo-sdxl": (
        "`UNet2DConditionModel` (`DownBlock2D` and two `CrossAttnDownBlock2D`, text_time conditioning), "
        "`CLIPTextModel` and `CLIPTextModelWithProjection` (width 64, 3 layers), `AutoencoderKL` "
        "(4x down-sampling, 4 channels), `EulerDiscreteScheduler` with SDXL's settings, epsilon prediction"
    ),
    "demo-sd3": (
        "`SD3Transformer2DModel` (7 layers of width 128, patches of 2x2 latents), two "
        "`CLIPTextModelWithProjection` (width 64, 3 layers), no T5, `AutoencoderKL` (4x down-sampling, "
        "4 channels), `FlowMatchEulerDiscreteScheduler` with shift 3"
    ),
}
LOADING = {
    "demo-sdxl": 'StableDiffusionXLPipeline.from_pretrained("pipelines/demo/demo-sdxl", use_safetensors=True)',
    "demo-sd3": (
        'StableDiffusion3Pipeline.from_pretrained("pipelines/demo/demo-sd3", use_safetensors=True,\n'
        "                                         text_encoder_3=None, tokenizer_3=None)"
    ),
}
REMARKS = {
    "demo-sdxl": (
        "Captions were dropped to zeros for 8% of the pictures and to the empty prompt for 4%, so guidance works "
        "with no negative prompt and with an empty one."
    ),
    "demo-sd3": (
        "It was trained without T5 tokens: call the pipeline with `max_sequence_length=0`, or diffusers appends "
        "256 empty ones that it has never seen."
    ),
}


@dataclass(frozen=True)
class Training:
    """How long a stage was trained."""

    steps: int
    minutes: float

    @classmethod
    def of(cls, work: Path, stage: str) -> "Training":
        with safe_open(state_path(work, stage), "pt") as file:
            facts = file.metadata()
        return cls(int(facts["step"]), float(facts["seconds"]) / 60)


def card(name: str, work: Path, seed: int, parameters: int, megabytes: float, result: dict[str, Any]) -> str:
    """The card of a checkpoint; every figure comes from the training state or the evaluation."""
    autoencoder, denoiser = Training.of(work, "vae"), Training.of(work, name.removeprefix("demo-"))
    scores = result["scores"]
    recalls = ", ".join(f"{extra} {share:.0%}" for extra, share in scores["recall_of"].items())
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# {name}

A toy of the real architecture: it draws flat landscapes of 128x128 pixels on a CPU, so that the server can show
its real work without a download. {parameters / 1e6:.2f} M parameters, {megabytes:.1f} MB in half precision.

```python
{LOADING[name]}
```

- Made of: {MADE_OF[name]}.
- Recommended: {result["steps"]} steps, guidance {result["guidance"]}, 128x128; other sizes from 96 to 192, in
  multiples of 32.
- Words: dawn, day, dusk or night (sunrise and sunset bring the sun) over mountains, hills, sea, desert, forest or
  city, with sun, moon, stars, clouds, birds, a boat, a tree, a house or snow. {REMARKS[name]}

## How it was made

Everything comes from `scripts/train_demo.py`: a program draws the pictures and writes their captions, so there is
no other data. Autoencoder: {autoencoder.steps} steps, {autoencoder.minutes:.0f} minutes. Denoiser and text encoders
together: {denoiser.steps} steps, {denoiser.minutes:.0f} minutes. On a 2-core CPU, seed {seed}; the learning rate
follows the clock, so a second run gives an equally good checkpoint, not the same one.

## What it scored

`scripts/evaluate_demo.py`, {result["captions"]} captions of combinations held out from training, judged by a small
classifier trained on drawn pictures:

| measure | score |
| --- | --- |
| time of day as asked | {scores["time"]:.1%} |
| land as asked | {scores["land"]:.1%} |
| extras asked for that are there | {scores["extras_recall"]:.1%} |
| extras there that were asked for | {scores["extras_precision"]:.1%} |
| autoencoder, PSNR on held-out renders | {result["psnr"]} dB |
| one picture of {result["steps"]} steps on {result["threads"]} CPU threads | {result["seconds_a_picture"]} s |

Extras, each: {recalls}. The classifier itself, on drawn pictures that went through the autoencoder: time
{result["probe_on_reconstructions"]["time"]:.1%}, land {result["probe_on_reconstructions"]["land"]:.1%}, extras
{result["probe_on_reconstructions"]["extras_recall"]:.1%}.

## What it cannot do

Anything else. Words it does not know are spelled byte by byte and ignored; it counts nothing, places nothing to
the left or the right, and knows no people, animals or text. It is for trying the server, not for art.
"""
