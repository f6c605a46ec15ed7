"""What the server can do: for the web page, for `darkroom top` and for other programs."""

from litestar import Controller, get
from litestar.di import NamedDependency

from server.facts import Capabilities
from server.schemas import Success, success
from server.state import Services


class ServerOverview(Controller):
    """The application's paths about the server as a whole."""

    path = "/api/v1"
    tags = ["server"]

    @get("/capabilities", sync_to_thread=False)
    def capabilities(self, services: NamedDependency[Services]) -> Success[Capabilities]:
        """The device, the limits, and each model with what it can do, where it is and what its steps cost."""
        return success(services.overview.capabilities(services.settings, services.catalog, services.broken))
