"""The history of finished images, and one image's settings and end."""

import asyncio
from typing import Annotated, TypedDict

from litestar import Controller, delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from server.identity.caller import Caller
from server.playground import ImageFacts, image_facts
from server.schemas import Success, says, success
from server.state import Services


class History(TypedDict):
    """One page of the history."""

    images: list[ImageFacts]
    total: Annotated[int, says("How many there are on all pages.", minimum=0)]
    page: Annotated[int, says("Which page this is, from 1.", minimum=1)]
    perPage: Annotated[int, says("How many a page has at most.", minimum=1)]


class Deleted(TypedDict):
    """What was deleted."""

    id: str


class Images(Controller):
    """The paths the playground frontend calls."""

    path = "/api/images"
    tags = ["images"]

    @get("/history")
    async def history(
        self,
        services: NamedDependency[Services],
        caller: NamedDependency[Caller],
        page: Annotated[int, QueryParameter(ge=1, le=1_000_000)] = 1,
        perPage: Annotated[int, QueryParameter(ge=1, le=100)] = 20,  # as written in the query, for errors name it so
        session_id: FromQuery[str | None] = None,
    ) -> History:
        """Finished images, newest first."""
        found = await services.jobs.images.history(caller.owner_id, page, perPage, session_id)
        images = [image_facts(image, services.links) for image in found.images]
        return {"images": images, "total": found.total, "page": page, "perPage": perPage}

    @get("/{image_id:str}")
    async def image(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], image_id: FromPath[str]
    ) -> ImageFacts:
        """One image with every setting that made it."""
        return image_facts(await services.jobs.images.get(caller.owner_id, image_id), services.links)

    @delete("/{image_id:str}", status_code=200)
    async def delete_image(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], image_id: FromPath[str]
    ) -> Success[Deleted]:
        """Delete an image: its row first, durably, then its files."""
        image = await services.jobs.images.delete(caller.owner_id, image_id)
        for name in (image.media_name, image.thumbnail_name):
            await asyncio.to_thread(services.jobs.files.delete, name)
        return success(Deleted(id=image.id))
