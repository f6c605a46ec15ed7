"""What Prometheus scrapes."""

from litestar import Controller, MediaType, Response, get
from litestar.di import NamedDependency
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from server.identity.guard import OPERATOR
from server.schemas import Raw, documents
from server.state import Services

TEXT = Raw("What is measured, in Prometheus' text format.", ("text/plain",))


class Metrics(Controller):
    """For operators."""

    tags = ["health"]

    @get("/metrics", opt=OPERATOR | documents(answers={200: TEXT}), sync_to_thread=False, media_type=MediaType.TEXT)
    def metrics(self, services: NamedDependency[Services]) -> Response[bytes]:
        """What is measured of this server, in Prometheus' text format."""
        return Response(services.metrics.text(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
