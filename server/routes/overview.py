"""What the server is doing, and what it can do: for the web page, for `darkroom top` and for other programs."""

from typing import Annotated, Any

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from server.state import Services


class ServerOverview(Controller):
    """The application's paths about the server as a whole."""

    path = "/api/v1"
    tags = ["server"]

    @get("/queue", sync_to_thread=False)
    def queue(
        self, services: NamedDependency[Services], limit: Annotated[int, QueryParameter(ge=0, le=1000)] = 100
    ) -> dict[str, Any]:
        """The images that wait or run, when they will be done, and how the last minute was."""
        return {"success": True, "data": services.overview.queue(limit)}

    @get("/capabilities", sync_to_thread=False)
    def capabilities(self, services: NamedDependency[Services]) -> dict[str, Any]:
        """The device, the limits, and each model with what it can do, where it is and what its steps cost."""
        data = services.overview.capabilities(services.settings, services.catalog, services.broken)
        return {"success": True, "data": data}
