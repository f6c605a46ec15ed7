"""OpenAI's Images API: generations and models, with our own fields beside theirs."""

import asyncio
from base64 import b64encode
from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from pipelines.catalog import ModelEntry
from server.disconnect import while_connected
from server.generation import wants_base64
from server.identity.caller import Caller
from server.intake import read_order
from server.jobs.jobs import Jobs
from server.jobs.orders import Order
from server.jobs.results import Result
from server.openapi import documents_body
from server.playground import image_facts
from server.routes.jobs import queued
from server.state import Services
from storage.files import MediaFiles
from storage.records import ImageRecord


class OpenAI(Controller):
    """Everything under /v1."""

    path = "/v1"
    tags = ["openai"]

    @post("/images/generations", status_code=200, operation_class=documents_body("GenerationBody"))
    async def generate(
        self, request: Request[Any, Any, Any], services: NamedDependency[Services], caller: NamedDependency[Caller]
    ) -> Response[dict[str, Any]]:
        """Make pictures and wait for them; with `async`, or `Prefer: respond-async`, they are fetched later."""
        asked = await read_order(request, services, caller)
        body, order = asked.body, asked.order
        if body.respond_async or "respond-async" in request.headers.get("prefer", ""):
            return await queued(services, caller, asked)
        base = None if wants_base64(body) else services.settings.public_url or str(request.base_url)
        result = await while_connected(request, services.jobs.run(order, asked.key))
        items = [await _item(services.jobs, image, base) for image in result.images]
        return Response(_response(order, result, items), headers=await services.allowances.headers(caller))

    @get("/models", sync_to_thread=False)
    def models(self, services: NamedDependency[Services]) -> dict[str, Any]:
        """The models in the catalogue."""
        entries = services.catalog.entries.values()
        return {"object": "list", "data": [_model(entry, services.weights.known(entry)) for entry in entries]}

    @get("/models/{name:path}", sync_to_thread=False)
    def model(self, services: NamedDependency[Services], name: FromPath[str]) -> dict[str, Any]:
        """One model, by its name or an alias."""
        entry = services.catalog.resolve(name.removeprefix("/"))
        return _model(entry, services.weights.known(entry))


def _model(entry: ModelEntry, model_hash: str | None) -> dict[str, Any]:
    return {
        "id": entry.name,
        "object": "model",
        "created": 0,
        "owned_by": "darkroom",
        "family": entry.family,
        "model_hash": model_hash,
        "aliases": entry.aliases,
        "license": entry.license,
        "price": entry.price.told,
        "defaults": {
            "width": entry.width,
            "height": entry.height,
            "steps": entry.steps,
            "guidance_scale": entry.guidance_scale,
            "sampler": entry.sampler,
            "schedule": entry.schedule,
        },
        "native_sizes": entry.native_sizes,
        "size_step": entry.size_step,
        "max_pixels": entry.max_pixels,
        "max_side": entry.max_side,
    }


async def _item(jobs: Jobs, image: ImageRecord, base: str | None) -> dict[str, Any]:
    """One image of the response: with its absolute URL, or with its bytes where `base` is None."""
    item: dict[str, Any] = {
        "id": image.id,
        "seed": image.seed,
        "width": image.width,
        "height": image.height,
        "revised_prompt": image.prompt,
        "imageUrl": image.media_name.url_path,
        "thumbnailUrl": image.thumbnail_name.url_path,
    }
    if base is None:
        return item | {"b64_json": await asyncio.to_thread(_base64, jobs.files, image)}
    return item | {"url": base.rstrip("/") + image.media_name.url_path}


def _base64(files: MediaFiles, image: ImageRecord) -> str:
    """An image's file. Raises MediaNotFound when it was deleted meanwhile."""
    with files.open(image.media_name)[0] as stream:
        return b64encode(stream.read()).decode("ascii")


def _response(order: Order, result: Result, data: list[dict[str, Any]]) -> dict[str, Any]:
    """OpenAI's shape and, beside it, the first image in the playground's own, with the whole job's time and cost."""
    first = result.images[0]
    response = image_facts(first) | {
        "created": int(first.created_at.timestamp()),
        "data": data,
        "background": "opaque",
        "output_format": order.format.value,
        "quality": order.notes["quality"],
        "size": f"{first.width}x{first.height}",
        "usage": _usage(result),
        "generationTime": round(result.seconds, 3),
        "estimatedTime": round(result.promised, 3),
        "cost": result.job.cost,
    }
    warnings = [f"image {index} failed: {reason}" for index, reason in sorted(result.failures.items())]
    warnings += [
        f"The {name} has {count.tokens} tokens; the text encoders did not read its last {count.dropped}."
        for name, count in (("prompt", result.prompt), ("negative prompt", result.negative_prompt))
        if count.dropped
    ]
    return response | ({"warnings": warnings} if warnings else {})


def _usage(result: Result) -> dict[str, Any]:
    tokens = result.prompt.tokens
    details = {"text_tokens": tokens, "image_tokens": 0}
    return {"total_tokens": tokens, "input_tokens": tokens, "output_tokens": 0, "input_tokens_details": details}
