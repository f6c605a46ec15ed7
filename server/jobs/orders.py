"""Orders: what a client asked for, settled; how one is kept in its job's row, and made again from it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pipelines.catalog import Catalog, ModelEntry
from pipelines.request import ImageRequest, Wishes, settle
from storage.media import ImageFormat
from storage.money import total
from storage.records import JobRecord, NewJob


@dataclass(frozen=True)
class Order:
    """What a client asked for, settled: one request an image, seeds counting up.

    `traceparent` is the header by which the client's own trace goes on in the job's, whatever it holds. It is not kept
    in the row: a job that a later run of the server carries out has a trace of its own.
    """

    owner_id: str
    entry: ModelEntry
    requests: Sequence[ImageRequest]
    format: ImageFormat = ImageFormat.PNG
    compression: int | None = None
    priority: int = 0
    deadline: float | None = None
    session_id: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    key_id: str | None = None
    public: bool = False
    attached: bool = True
    """Whether its client waits for the answer, or comes back for it."""
    notes: dict[str, Any] = field(default_factory=dict)
    traceparent: str | None = None
    limited: bool = False
    """Whether its owner's limits hold for it, and its credit pays for it: not for what an operator hands in."""
    agreed: tuple[float, ...] | None = None
    """What its images cost by the price of the time when it was first handed in; None for the present price."""

    @property
    def costs(self) -> tuple[float, ...]:
        """What each of its images costs, in the operator's currency."""
        if self.agreed is not None:
            return self.agreed
        price = self.entry.price
        return tuple(price.of(request.width, request.height, request.steps) for request in self.requests)


def to_job(order: Order) -> NewJob:
    """The order as a row, with all that making it again takes."""
    first = order.requests[0]
    return NewJob(
        owner_id=order.owner_id,
        session_id=order.session_id,
        priority=order.priority,
        request={
            "images": [asdict(request) for request in order.requests],
            "format": order.format,
            "compression": order.compression,
            "notes": order.notes,
            "limited": order.limited,
            "costs": order.costs,
        },
        prompt=first.prompt,
        negative_prompt=first.negative_prompt or "",
        model=order.entry.name,
        image_count=len(order.requests),
        user=order.user,
        safety_identifier=order.safety_identifier,
        key_id=order.key_id,
        public=order.public,
        attached=order.attached,
        pixel_steps=sum(request.width * request.height * request.steps for request in order.requests),
        expected_cost=total(order.costs),
    )


def from_job(job: JobRecord, catalog: Catalog) -> Order:
    """The order of a job that an earlier run of the server took, checked against the models there are now.

    Raises:
        UnknownModel: its model is no longer there.
        InvalidRequest: the model no longer makes such a picture.
    """
    entry = catalog.resolve(job.model)
    return Order(
        owner_id=job.owner_id,
        entry=entry,
        requests=[_settled(image, entry) for image in job.request["images"]],
        format=ImageFormat(job.request["format"]),
        compression=job.request["compression"],
        priority=job.priority,
        session_id=job.session_id,
        user=job.user,
        safety_identifier=job.safety_identifier,
        key_id=job.key_id,
        public=job.public,
        attached=job.attached,
        notes=job.request["notes"],
        limited=job.request.get("limited", False),  # jobs of an earlier version have neither
        agreed=tuple(job.request["costs"]) if "costs" in job.request else None,
    )


def _settled(image: Mapping[str, Any], entry: ModelEntry) -> ImageRequest:
    """What was settled once settles to the same again, unless the model has changed what it takes."""
    wishes = Wishes(**{wish.name: image[wish.name] for wish in fields(Wishes)})
    return settle(wishes, entry, image["seed"])
