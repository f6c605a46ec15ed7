"""The body of an image generation: its fields, what each means and may hold, and which other spellings clients use."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pipelines.request import MAX_CLIP_SKIP, MAX_GUIDANCE, MAX_PROMPT_CHARACTERS, MAX_SEED
from pipelines.samplers import MAX_STEPS
from server.schemas import says
from storage.media import ImageFormat

MAX_IMAGES = 10
MAX_PRIORITY = 10
MAX_DEADLINE = 86_400.0
"""Seconds."""
MAX_LABEL_CHARACTERS = 256
"""Of what only goes with a job: who it is for, and which session it belongs to."""

STYLES = ("vivid", "natural")
BACKGROUNDS = ("auto", "opaque")
ANSWERS_AS = ("url", "b64_json")


def _one_of(meaning: str, *words: str, **keywords: Any) -> Meta:
    return says(meaning, enum=[*words, None], **keywords)


class GenerationBody(msgspec.Struct):
    """What to make. A field that is null or absent is left to the model's defaults.

    Each field may also be written in camelCase, and `cfg_scale`, `num_images`, `num_inference_steps`, `scheduler`,
    `prompt_text` and `async` mean `guidance_scale`, `n`, `steps`, `schedule`, `prompt` and `respond_async`. A field of
    any other name is an error that names it.
    """

    prompt: Annotated[
        str,
        says("What to draw; not all of it blank.", pattern=r"\S", maxLength=MAX_PROMPT_CHARACTERS, examples=["a boat"]),
    ]
    model: Annotated[str | None, says("A model's name or alias; without it, the catalogue's default.")] = None
    n: Annotated[int | None, says("How many pictures; their seeds count up.", minimum=1, maximum=MAX_IMAGES)] = None
    size: Annotated[
        str | None,
        says(
            '`"WIDTHxHEIGHT"` in pixels, in multiples of the model\'s `size_step`; `"auto"` is the model\'s own.',
            pattern=r"^\s*(\d{1,6}\s*[xX×]\s*\d{1,6}|[aA][uU][tT][oO])\s*$",
            examples=["1024x1024"],
        ),
    ] = None
    quality: Annotated[
        str | None,
        says(
            "How many steps, in a word; an unknown one means medium.",
            examples=["low", "medium", "high", "xhigh", "max", "draft", "auto", "standard", "hd"],
        ),
    ] = None
    style: Annotated[str | None, _one_of("Accepted, and leaves the picture as it is.", *STYLES)] = None
    response_format: Annotated[
        str | None,
        _one_of(
            "The picture's address, or its bytes in base64. Without it: its bytes where `output_format` is given or"
            " `model` starts with `gpt-image` or `chatgpt-image`, else its address.",
            *ANSWERS_AS,
        ),
    ] = None
    output_format: Annotated[
        str | None, _one_of("What the picture is written as.", *ImageFormat, "jpg", default=ImageFormat.PNG)
    ] = None
    output_compression: Annotated[
        int | None, says("The quality of a JPEG or WebP, 95 without it; PNG has none.", minimum=0, maximum=100)
    ] = None
    background: Annotated[str | None, _one_of("These models make no transparent pictures.", *BACKGROUNDS)] = None
    moderation: Annotated[str | None, says("Accepted, without meaning here.")] = None
    input_fidelity: Annotated[str | None, says("Accepted, without meaning here.")] = None
    user: Annotated[
        str | None,
        says("Who the picture is for: users share the device fairly.", maxLength=MAX_LABEL_CHARACTERS),
    ] = None
    safety_identifier: Annotated[str | None, says("Kept with the job.", maxLength=MAX_LABEL_CHARACTERS)] = None
    negative_prompt: Annotated[
        str | None, says("What the picture should not show.", maxLength=MAX_PROMPT_CHARACTERS)
    ] = None
    steps: Annotated[
        int | None,
        says("How often the network looks at the picture; wins over `quality`.", minimum=1, maximum=MAX_STEPS),
    ] = None
    guidance_scale: Annotated[
        float | None,
        says(
            "How closely to follow the prompt; 1 or less turns guidance off and halves a step's cost.",
            minimum=0,
            maximum=MAX_GUIDANCE,
        ),
    ] = None
    sampler: Annotated[
        str | None, says("A sampler; `/api/v1/capabilities` lists each model's.", examples=["Euler a"])
    ] = None
    schedule: Annotated[str | None, says("One of the sampler's schedules, listed there too.", examples=["karras"])] = (
        None
    )
    seed: Annotated[
        int | None, says("The first picture's seed; -1 has one drawn.", minimum=-1, maximum=MAX_SEED, default=-1)
    ] = None
    width: Annotated[
        int | None, says("In pixels, in multiples of the model's `size_step`; wins over `size`.", minimum=1)
    ] = None
    height: Annotated[int | None, says("The same; without one of the two, the model's own is taken.", minimum=1)] = None
    aspect_ratio: Annotated[
        str | None,
        says(
            "Width to height, from 1:8 to 8:1, at about the model's usual number of pixels.",
            pattern=r"^\s*\d{1,4}(\.\d{1,4})?\s*[:/]\s*\d{1,4}(\.\d{1,4})?\s*$",
            examples=["16:9"],
        ),
    ] = None
    clip_skip: Annotated[
        int | None,
        says("How many further layers of the CLIP text encoders to leave out.", minimum=0, maximum=MAX_CLIP_SKIP),
    ] = None
    skip_guidance: Annotated[
        float | None, says("The last share of the steps that goes without guidance.", minimum=0, maximum=1)
    ] = None
    deterministic: Annotated[
        bool | None,
        says("Compute the picture in a batch of its own, by algorithms that repeat bit for bit.", default=False),
    ] = None
    priority: Annotated[
        int | None, says("A higher one goes first.", minimum=-MAX_PRIORITY, maximum=MAX_PRIORITY, default=0)
    ] = None
    deadline: Annotated[
        float | None,
        says("In how many seconds it is wanted; one that is missed loses nothing.", minimum=0, maximum=MAX_DEADLINE),
    ] = None
    session_id: Annotated[str | None, says("By which jobs can be listed later.", maxLength=MAX_LABEL_CHARACTERS)] = None
    public: Annotated[
        bool | None, says("Anybody who has a picture's address may see it, without a credential.", default=False)
    ] = None
    respond_async: Annotated[
        bool | None, says("Answer 202 with the job as soon as it is queued, to be fetched later.", default=False)
    ] = None


EXAMPLE = {"prompt": "a lighthouse on a cliff at dusk", "steps": 20, "seed": 7}

# Other spellings that clients use, beside the camelCase of every field.
ALIASES = {"cfg_scale": "guidance_scale", "num_images": "n", "num_inference_steps": "steps", "scheduler": "schedule"}
ALIASES |= {"prompt_text": "prompt", "async": "respond_async"}

# Part of the API, not of this server yet; each is an error that says so, unless it asks for nothing.
LATER = {
    "stream": "streaming",
    "partial_images": "streaming",
    "image": "edits",
    "mask": "edits",
    "strength": "edits",
    "reference_images": "reference images",
    "control": "control images",
    "loras": "LoRAs",
    "preset": "presets",
    "hires_fix": "hires fix",
    "refiner": "the refiner",
    "watermark": "watermarks",
    "tags": "tags",
}
