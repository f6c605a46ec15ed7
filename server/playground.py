"""An image's facts in the words of the playground frontend, wherever they are sent."""

from datetime import datetime
from typing import Any

from server.identity.links import Links
from storage.records import ImageRecord


def image_facts(image: ImageRecord, links: Links) -> dict[str, Any]:
    """One image as the playground frontend reads it."""
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
        "parameters": {
            "steps": image.steps,
            "cfgScale": image.guidance_scale,
            "sampler": image.sampler,
            "schedule": image.schedule,
            "seed": image.seed,
        }
        | image.parameters,
        "generationTime": round(image.generation_seconds, 3),
        "cost": image.cost,
        "public": image.public,
        "createdAt": iso(image.created_at),
    }


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with a Z, to the millisecond."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
