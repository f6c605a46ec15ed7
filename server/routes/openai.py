"""OpenAI's Images API: generations and models, with our own fields beside theirs."""

import asyncio
from base64 import b64encode
from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from pipelines.catalog import ModelEntry
from pipelines.errors import ImageFailed, ImageTooLarge, UnknownModel
from server.disconnect import while_connected
from server.errors import Cancelled, EngineLost, Interrupted, ModelUnavailable
from server.generation import wants_base64
from server.generation_body import EXAMPLE, GenerationBody
from server.identity.caller import Caller
from server.intake import REFUSED, read_order
from server.jobs.orders import Order
from server.jobs.results import Result
from server.openai_shapes import ModelCard, ModelList, Picture, Pictures, TokenUsage
from server.playground import ImageFacts, image_facts
from server.routes.jobs import QUEUED, Queued, queued
from server.schemas import Success, documents
from server.state import Services
from storage.errors import DiskFault, DiskFull, MetadataTooLarge, PicturesDeleted
from storage.files import MediaFiles
from storage.records import ImageRecord

FAILED = (
    Cancelled,
    ImageFailed,
    ImageTooLarge,
    ModelUnavailable,
    PicturesDeleted,
    Interrupted,
    EngineLost,
    DiskFull,
    DiskFault,
    MetadataTooLarge,
)
"""Why there is no picture, though the job was taken."""


class OpenAI(Controller):
    """Everything under /v1."""

    path = "/v1"
    tags = ["openai"]

    @post(
        "/images/generations",
        status_code=200,
        opt=documents(
            body=GenerationBody,
            example=EXAMPLE,
            answers={200: Pictures, 202: Success[Queued]},
            raises=(*REFUSED, *FAILED),
            reads=("Idempotency-Key", "Prefer"),
            sends=QUEUED,
        ),
    )
    async def generate(
        self, request: Request[Any, Any, Any], services: NamedDependency[Services], caller: NamedDependency[Caller]
    ) -> Response[Pictures] | Response[Success[Queued]]:
        """Make pictures and wait for them; with `async`, or `Prefer: respond-async`, they are fetched later."""
        asked = await read_order(request, services, caller)
        body, order = asked.body, asked.order
        if body.respond_async or "respond-async" in request.headers.get("prefer", ""):
            return await queued(services, caller, asked)
        base = None if wants_base64(body) else services.settings.public_url or str(request.base_url)
        result = await while_connected(request, services.jobs.run(order, asked.key))
        items = [await _item(services, image, base) for image in result.images]
        facts = image_facts(result.images[0], services.links)
        headers = await services.allowances.headers(caller)
        return Response(_response(order, result, items, facts), headers=headers)

    @get("/models", sync_to_thread=False)
    def models(self, services: NamedDependency[Services]) -> ModelList:
        """The models in the catalogue."""
        entries = services.catalog.entries.values()
        return {"object": "list", "data": [_model(entry, services.weights.known(entry)) for entry in entries]}

    @get("/models/{name:path}", opt=documents(raises=(UnknownModel,)), sync_to_thread=False)
    def model(self, services: NamedDependency[Services], name: FromPath[str]) -> ModelCard:
        """One model, by its name or an alias."""
        entry = services.catalog.resolve(name.removeprefix("/"))
        return _model(entry, services.weights.known(entry))


def _model(entry: ModelEntry, model_hash: str | None) -> ModelCard:
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


async def _item(services: Services, image: ImageRecord, base: str | None) -> Picture:
    """One image of the response: with its absolute URL, or with its bytes where `base` is None."""
    facts = image_facts(image, services.links)
    item: Picture = {
        "id": image.id,
        "seed": image.seed,
        "width": image.width,
        "height": image.height,
        "revised_prompt": image.prompt,
        "imageUrl": facts["imageUrl"],
        "thumbnailUrl": facts["thumbnailUrl"],
    }
    if base is None:
        return {**item, "b64_json": await asyncio.to_thread(_base64, services.jobs.files, image)}
    return {**item, "url": base.rstrip("/") + facts["imageUrl"]}


def _base64(files: MediaFiles, image: ImageRecord) -> str:
    """An image's file. Raises MediaNotFound when it was deleted meanwhile."""
    with files.open(image.media_name)[0] as stream:
        return b64encode(stream.read()).decode("ascii")


def _response(order: Order, result: Result, data: list[Picture], facts: ImageFacts) -> Pictures:
    """OpenAI's shape and, beside it, the first image in the playground's own, with the whole job's time and cost."""
    first = result.images[0]
    warnings = [f"image {index} failed: {reason}" for index, reason in sorted(result.failures.items())]
    warnings += [
        f"The {name} has {count.tokens} tokens; the text encoders did not read its last {count.dropped}."
        for name, count in (("prompt", result.prompt), ("negative prompt", result.negative_prompt))
        if count.dropped
    ]
    response: Pictures = {
        **facts,
        "created": int(first.created_at.timestamp()),
        "data": data,
        "background": "opaque",
        "output_format": order.format,
        "quality": order.notes["quality"],
        "size": f"{first.width}x{first.height}",
        "usage": _usage(result),
        "generationTime": round(result.seconds, 3),
        "estimatedTime": round(result.promised, 3),
        "cost": result.job.cost,
        "warnings": warnings,
    }
    if not warnings:
        del response["warnings"]
    return response


def _usage(result: Result) -> TokenUsage:
    tokens = result.prompt.tokens
    return {
        "total_tokens": tokens,
        "input_tokens": tokens,
        "output_tokens": 0,
        "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
    }
