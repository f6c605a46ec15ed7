"""What the server is doing, and what it can do: for the web page, for `darkroom top` and for other programs."""

import asyncio
from typing import Annotated

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from server.errors import NoPreview
from server.facts import Capabilities, Queue
from server.identity.caller import Caller
from server.schemas import Raw, Success, documents, success
from server.state import Services
from storage.encoding import encode
from storage.media import ImageFormat

PREVIEW = Raw("The picture as far as its last step tells, at most 256 pixels a side.", ("image/webp",))


class ServerOverview(Controller):
    """The application's paths about the server as a whole."""

    path = "/api/v1"
    tags = ["server"]

    @get("/queue", sync_to_thread=False)
    def queue(
        self, services: NamedDependency[Services], limit: Annotated[int, QueryParameter(ge=0, le=1000)] = 100
    ) -> Success[Queue]:
        """The images that wait or run, when they will be done, and how the last minute was."""
        return success(services.overview.queue(limit))

    @get("/queue/{number:int}/preview", media_type="image/webp", opt=documents(answers={200: PREVIEW}))
    async def preview(
        self, services: NamedDependency[Services], caller: NamedDependency[Caller], number: FromPath[int]
    ) -> Response[bytes]:
        """What one of the caller's own pictures looks like by now: small, and drawn when it is asked for."""
        ticket = services.scheduler.line.find(number)
        image = None
        if ticket is not None and ticket.owner == caller.owner_id:
            image = await services.scheduler.previews.of(ticket)
        if image is None:
            raise NoPreview(number)
        content = await asyncio.to_thread(encode, image, ImageFormat.WEBP, {})
        return Response(content, headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})

    @get("/capabilities", sync_to_thread=False)
    def capabilities(self, services: NamedDependency[Services]) -> Success[Capabilities]:
        """The device, the limits, and each model with what it can do, where it is and what its steps cost."""
        return success(services.overview.capabilities(services.settings, services.catalog, services.broken))
