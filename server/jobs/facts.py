"""A job's facts as its clients read them."""

from typing import Annotated, TypedDict

from server.playground import ImageFacts
from server.schemas import Moment, says
from storage.records import JobStatus


class JobError(TypedDict):
    """Why a job failed, or why it is not whole."""

    code: Annotated[str, says("An error's code, or `partly_failed` where only some pictures are missing.")]
    message: Annotated[str | None, says("The same for people.")]


class JobRow(TypedDict):
    """What was asked for and when, which never tells how far it is."""

    prompt: str
    negativePrompt: str
    model: Annotated[str, says("The model's name in the catalogue.")]
    imageCount: Annotated[int, says("How many pictures were asked for.", minimum=1)]
    priority: Annotated[int, says("A higher one goes first.")]
    sessionId: Annotated[str | None, says("The client's `session_id`.")]
    cost: Annotated[float, says("What it came to, in the operator's currency; 0 until its end.", minimum=0)]
    expectedCost: Annotated[float, says("What it costs if all of its pictures are made.", minimum=0)]
    public: Annotated[bool, says("Whether everybody may see its pictures who has their addresses.")]
    createdAt: Moment
    startedAt: Annotated[Moment | None, says("When it was first begun.")]
    finishedAt: Annotated[Moment | None, says("When it ended, in whatever way.")]
    dueAt: Annotated[Moment | None, says("Of a job that waits for its next attempt: when that is.")]


class JobState(TypedDict):
    """How far a job is."""

    id: str
    jobId: Annotated[str, says("The same as `id`.")]
    status: Annotated[JobStatus, says("Where it stands.")]
    progress: Annotated[float, says("Percent of its steps; 100 once its pictures are kept.", minimum=0, maximum=100)]
    currentStep: Annotated[str, says("What is being done, in words.", examples=["waiting in queue", "denoising 12/30"])]
    queuePosition: Annotated[
        int | None, says("Its place among the jobs of which nothing is begun, from 1; null once it is begun.")
    ]
    estimatedTimeRemaining: Annotated[float | None, says("In seconds; null while the queue is paused.", minimum=0)]
    estimatedCompletion: Annotated[Moment | None, says("The same as a moment.")]
    attempts: Annotated[int, says("How often it was begun.", minimum=0)]
    maxAttempts: Annotated[int, says("After how many it fails for good.", minimum=1)]


class QueuedJob(JobState):
    """A job as those see it who run the queue: without its words and its pictures."""

    owner: Annotated[str, says("Whose it is.")]
    model: Annotated[str, says("The model's name in the catalogue.")]
    imageCount: Annotated[int, says("How many pictures were asked for.", minimum=1)]
    priority: Annotated[int, says("A higher one goes first.")]
    createdAt: Moment


class JobFacts(JobState, JobRow):
    """One job: how far it is, when it will be done, what came of it."""

    resultImages: Annotated[list[ImageFacts], says("Its pictures, once it is completed.")]
    error: Annotated[
        JobError | None, says("Why it failed, why pictures are missing, or what its last attempt failed of.")
    ]
