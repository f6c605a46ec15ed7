"""What the server tells of itself, as clients read it: the queue, the device, and what each model can do."""

from collections.abc import Sequence
from typing import Annotated, Literal, TypedDict

from pipelines.progress import LoadStage
from server.scheduling.queue import Stage
from server.schemas import Price, says
from storage.media import ImageFormat

Count = Annotated[int, says("How many.", minimum=0)]


class QueueImage(TypedDict):
    """One image that waits or runs. Whose it is, and of what, is not told."""

    id: Annotated[int, says("Its number, by which its preview is asked for.")]
    position: Annotated[int | None, says("Its place in line, from 0; null once it has begun.", minimum=0)]
    stage: Annotated[Stage, says("What is done with it.")]
    model: str
    width: Annotated[int, says("In pixels.", minimum=1)]
    height: Annotated[int, says("In pixels.", minimum=1)]
    step: Annotated[int, says("How many steps are done.", minimum=0)]
    steps: Annotated[int, says("Of how many.", minimum=1)]
    priority: int
    estimatedTimeRemaining: Annotated[
        float | None,
        says("A forecast in seconds that all onlookers share; null for one that has just come.", minimum=0),
    ]
    waited: Annotated[float, says("Seconds in line.", minimum=0)]


class Recent(TypedDict):
    """The last minute."""

    seconds: Annotated[float, says("How long that is.")]
    picturesPerSecond: Annotated[float, says("How many were finished.", minimum=0)]
    rowsPerStep: Annotated[float | None, says("How full the steps were; null where none ran.", minimum=0)]


class QueueTotals(TypedDict):
    """What happened since the start."""

    pictures: Count
    failures: Count
    refusals: Count


class Queue(TypedDict):
    """The images that wait or run, and how the last minute was."""

    queueLength: Annotated[int, says("How many pictures have not begun.", minimum=0)]
    processingCount: Annotated[int, says("How many have.", minimum=0)]
    paused: Annotated[bool, says("Whether no more are begun, because somebody said so.")]
    averageWaitTime: Annotated[
        float | None, says("Seconds that those begun in the last minute had waited; null where none was.", minimum=0)
    ]
    estimatedProcessingTime: Annotated[
        float | None, says("Seconds until the last is done, if nobody else comes; null while paused.", minimum=0)
    ]
    backlogSeconds: Annotated[float, says("What the device needs for all of them in full batches.", minimum=0)]
    retryAfter: Annotated[int, says("What a request that is refused now would be told, in seconds.", minimum=0)]
    images: Annotated[list[QueueImage], says("Those begun, then the line; within both the first to be done first.")]
    recent: Recent
    totals: QueueTotals


class Device(TypedDict):
    """What the server computes on."""

    name: str
    kind: Annotated[str, says("`cuda`, `mps` or `cpu`.")]
    dtype: Annotated[str, says("The precision that models run in unless their table says otherwise.")]
    memoryBytes: Annotated[int | None, says("Null where the device has no memory of its own.", minimum=0)]
    memoryUsedBytes: Annotated[
        int | None, says("What models and pictures take; null where that is not known.", minimum=0)
    ]


class Limits(TypedDict):
    """The most of everything."""

    maxRows: Annotated[int, says("Rows of a step.", minimum=1)]
    queueLimit: Annotated[int, says("Pictures that may wait.", minimum=0)]
    queueSeconds: Annotated[float, says("Seconds of work that may wait.", minimum=0)]
    n: Annotated[int, says("Pictures of a request.")]
    promptCharacters: int
    guidanceScale: float
    priority: Annotated[int, says("Priorities go from minus this to this.")]
    deadline: Annotated[float, says("In seconds.")]


class LoadFacts(TypedDict):
    """How far a model is on its way to the device."""

    stage: LoadStage
    share: Annotated[float, says("Of this stage.", minimum=0, maximum=1)]
    seconds: Annotated[float, says("Since it began.", minimum=0)]


class Sizes(TypedDict):
    """Which sizes a model makes, in pixels."""

    default: Annotated[str, says('Such as `"1024x1024"`.')]
    native: Annotated[Sequence[str], says("Those it was trained on.")]
    step: Annotated[int, says("Sides are multiples of it.")]
    maxPixels: int
    maxSide: int


class SamplerFacts(TypedDict):
    """A sampler that a model can use."""

    name: str
    schedules: Annotated[Sequence[str], says("The schedules that it takes.")]
    maxSteps: Annotated[int, says("The most steps that it takes.")]


class Shape(TypedDict):
    """What a step costs at one size."""

    width: int
    height: int
    cap: Annotated[int, says("The most rows that a step may have.")]
    knee: Annotated[int, says("The fewest rows with nearly the best throughput.")]
    stepSeconds: Annotated[dict[str, float], says("Seconds of a step by its rows.")]


class ModelFacts(TypedDict):
    """What a model can do here, where it is, and what its steps cost."""

    name: str
    default: Annotated[bool, says("Whether requests that name none get it.")]
    aliases: Sequence[str]
    family: str
    price: Price
    dtype: Annotated[str, says("The precision that it runs in here.")]
    state: Annotated[
        Literal["resident", "parked", "loading", "broken", "absent"],
        says(
            "On the device, in host memory, on its way, could not be loaded when it was last wanted, or none of these."
        ),
    ]
    loading: LoadFacts | None
    weightBytes: Annotated[int | None, says("What its weights take; null until that is known.", minimum=0)]
    sizes: Sizes
    steps: Annotated[int, says("What holds where a request says nothing; as do the next three.")]
    guidanceScale: float
    sampler: str
    schedule: str
    qualities: Annotated[dict[str, int | None], says("The steps that each quality word stands for.")]
    samplers: list[SamplerFacts]
    shapes: Annotated[list[Shape], says("Of the first 20 sizes made.")]


class Capabilities(TypedDict):
    """The device, the limits, and each model."""

    version: str
    device: Device
    limits: Limits
    formats: Annotated[list[ImageFormat], says("What pictures are written as.")]
    families: Annotated[list[str], says("The kinds of models.")]
    models: list[ModelFacts]
