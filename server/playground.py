"""An image's facts in the words of the playground frontend, wherever they are sent."""

from datetime import datetime
from typing import Annotated, TypedDict, cast

from server.identity.links import Links
from server.schemas import MOST, Moment, says
from storage.records import ImageRecord


class Parameters(TypedDict, total=False):
    """The settings that made an image."""

    steps: Annotated[int, says("How many steps it was made in.", minimum=1)]
    cfgScale: Annotated[float, says("Its guidance scale; 1 or less is none.", minimum=0)]
    sampler: str
    schedule: str
    seed: Annotated[int, says("Its own seed.", minimum=0, maximum=MOST)]
    quality: Annotated[str, says("The quality word that it was made by.")]
    clip_skip: Annotated[int | None, says("How many further layers of the CLIP text encoders were left out.")]
    skip_guidance: Annotated[float, says("The share of its steps that went without guidance.", minimum=0, maximum=1)]
    deterministic: Annotated[bool, says("Whether it was computed in a batch of its own, by repeatable algorithms.")]


class ImageFacts(TypedDict):
    """One image with every setting that made it."""

    id: str
    jobId: Annotated[str, says("The job it came of.")]
    prompt: str
    negativePrompt: str
    model: Annotated[str, says("The model's name in the catalogue.")]
    modelUsed: Annotated[str, says("The same as `model`.")]
    modelHash: Annotated[str | None, says("SHA-256 of the weights that made it; null where they were not hashed.")]
    imageUrl: Annotated[str, says("The path of its file on this server, signed for a while where that is needed.")]
    thumbnailUrl: Annotated[str, says("The path of its thumbnail, 256 pixels a side.")]
    width: Annotated[int, says("In pixels.", minimum=1)]
    height: Annotated[int, says("In pixels.", minimum=1)]
    parameters: Parameters
    generationTime: Annotated[float, says("Seconds from its first work to its last.", minimum=0)]
    cost: Annotated[float, says("In the operator's currency.", minimum=0)]
    public: Annotated[bool, says("Whether everybody may see it who has its address.")]
    createdAt: Moment


def image_facts(image: ImageRecord, links: Links) -> ImageFacts:
    """One image as the playground frontend reads it."""
    settings: Parameters = {
        "steps": image.steps,
        "cfgScale": image.guidance_scale,
        "sampler": image.sampler,
        "schedule": image.schedule,
        "seed": image.seed,
    }
    return {
        "id": image.id,
        "jobId": image.job_id,
        "prompt": image.prompt,
        "negativePrompt": image.negative_prompt,
        "model": image.model,
        "modelUsed": image.model,
        "modelHash": image.model_hash,
        "imageUrl": links.address(image.media_name, image.public),
        "thumbnailUrl": links.address(image.thumbnail_name, image.public),
        "width": image.width,
        "height": image.height,
        "parameters": cast(Parameters, settings | image.parameters),
        "generationTime": round(image.generation_seconds, 3),
        "cost": image.cost,
        "public": image.public,
        "createdAt": iso(image.created_at),
    }


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with a Z, to the millisecond."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
