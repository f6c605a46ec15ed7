"""One image's ticket from submission to picture, and the line of them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from time import monotonic
from typing import Any

from PIL.Image import Image

from pipelines.catalog import ModelEntry
from pipelines.request import BatchKey, ImageRequest, TokenCount
from pipelines.samplers import method_of
from server.scheduling.fairness import FairClock, Tenant
from server.scheduling.forecast import Plan
from server.scheduling.policy import Turn, in_turn, presses


def evaluations_of(entry: ModelEntry, request: ImageRequest) -> int:
    """How often an image evaluates the network, before its sampler is there to tell."""
    return method_of(request.sampler, entry.prediction).evaluations(request.steps)


class QueueFull(Exception):
    """As much waits or runs as the server allows; come back after `retry_after` seconds."""

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(f"The queue is full ({reason}). Try again in {retry_after} seconds.")
        self.retry_after = retry_after


class Stage(StrEnum):
    """Where an image stands. Ended or not is the future's to know, not the stage's."""

    WAITING = "waiting"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"


@dataclass(frozen=True)
class Picture:
    """A finished image: its pixels, how long it took from its first work to its last, and what its text came to.

    `finished` is when it was done, by the monotonic clock.
    """

    image: Image
    seconds: float
    prompt: TokenCount
    negative_prompt: TokenCount
    finished: float = field(default_factory=monotonic)


@dataclass(frozen=True)
class Submission:
    """What is asked of the scheduler besides the image itself.

    Attributes:
        priority: a higher one goes first, and is never held up by a lower one for longer than a step.
        owner: whose it is, who is to have a fair share of the device.
        user: whom the owner asks for, who is to have a fair share of the owner's part.
        deadline: seconds from now by which the picture is wanted, if that can be kept without harm to higher classes.
        ahead: it goes before the others of its priority.
        turn: the job it belongs to, where its owner's jobs at work are bounded.
    """

    priority: int = 0
    owner: str = ""
    deadline: float | None = None
    user: str = ""
    ahead: bool = False
    turn: Turn | None = None

    @property
    def tenant(self) -> Tenant:
        """Who shares."""
        return self.owner, self.user


ORDINARY = Submission()
"""Nothing but the image."""


@dataclass(eq=False)
class Ticket:
    """One image that somebody waits for; a `Candidate` of the policy.

    Awaiting `future` gives the picture or raises why there is none; cancelling it frees the image's rows by the
    next step. `watch` is called on the event loop after each step and at the end. `entered` is where its tenant's fair
    clock stood when it came, and `solo` its seconds with the device to itself. `step` of request.steps are done;
    `evaluations_left` are the forward passes still to come, of `evaluations` in all. `stages` are
    those it has come through, each with when it began, by the monotonic clock.
    """

    entry: ModelEntry
    request: ImageRequest
    wanted: Submission
    order: int
    future: asyncio.Future[Picture]
    watch: Callable[["Ticket"], None]
    clock: FairClock
    entered: float
    solo: float = 1.0
    submitted: float = field(default_factory=monotonic)
    started: float | None = None
    denoising: Any = None
    stages: list[tuple[Stage, float]] = field(init=False)
    step: int = field(default=0, init=False)
    evaluations: int = field(init=False)
    evaluations_left: int = field(init=False)
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.evaluations = self.evaluations_left = evaluations_of(self.entry, self.request)
        self.rows = self.request.rows
        self.stages = [(Stage.WAITING, self.submitted)]

    @property
    def stage(self) -> Stage:
        return self.stages[-1][0]

    @stage.setter
    def stage(self, stage: Stage) -> None:
        self.stages.append((stage, monotonic()))

    def note(self) -> None:
        """Take down how far its denoising is, while the GPU thread is not at it."""
        self.step, self.rows = self.denoising.step, self.denoising.rows
        self.evaluations_left = self.denoising.evaluations - self.denoising.evaluation

    @cached_property
    def key(self) -> BatchKey:
        return BatchKey.of(self.entry, self.request, self.order)

    @property
    def priority(self) -> int:
        return self.wanted.priority

    @property
    def owner(self) -> str:
        return self.wanted.owner

    @cached_property
    def tenant(self) -> Tenant:
        return self.wanted.tenant

    @property
    def turn(self) -> Turn | None:
        return self.wanted.turn

    @property
    def begun(self) -> bool:
        return self.stage is not Stage.WAITING

    @property
    def live(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.future.done()

    @property
    def failed(self) -> bool:
        """Whether it ended without a picture, which whoever ended it has told."""
        return self.future.done() and (self.future.cancelled() or self.future.exception() is not None)

    @property
    def shares(self) -> float:
        """How often equal sharing of the device would have finished it by now."""
        return self.clock.received(self.tenant, self.entered) / self.solo

    @property
    def pressing(self) -> bool:
        """Whether it is to go before others of its priority: somebody said so, or only so is its deadline kept."""
        return self.wanted.ahead or (self.slack is not None and presses(self.slack, self.solo))

    @property
    def slack(self) -> float | None:
        """The seconds it can still afford to wait, where it has a deadline."""
        if self.wanted.deadline is None:
            return None
        left = self.solo * self.evaluations_left / self.evaluations
        return self.submitted + self.wanted.deadline - monotonic() - left

    @property
    def plan(self) -> Plan:
        """It as the forecast sees it."""
        return Plan(
            key=self.key,
            rows=self.rows,
            priority=self.priority,
            order=self.order,
            evaluations_left=0 if self.stage is Stage.DECODING else self.evaluations_left,
            tenant=self.tenant,
            entered=self.entered,
            solo=self.solo,
            clock=self.clock,
            begun=self.begun,
            turn=self.turn,
            slack=self.slack,
            ahead=self.wanted.ahead,
        )

    def picture(self, image: Image) -> Picture:
        """What came of it."""
        started, text = self.started or self.submitted, self.denoising.conditioning
        return Picture(
            image=image,
            seconds=monotonic() - started,
            prompt=text.prompt,
            negative_prompt=text.negative_prompt,
        )

    def fail(self, error: BaseException) -> None:
        if self.live:
            self.future.set_exception(error)


ASKED = "the queue is paused"
"""Why nothing is begun, when an operator asked for that."""


class Line:
    """The images that wait or run, in the order in which they came."""

    def __init__(self) -> None:
        self._tickets: dict[int, Ticket] = {}

    def add(self, ticket: Ticket) -> None:
        self._tickets[ticket.order] = ticket

    def remove(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket.order, None)

    @property
    def tickets(self) -> list[Ticket]:
        """Those that somebody still waits for."""
        return [ticket for ticket in self._tickets.values() if ticket.live]

    def find(self, order: int) -> Ticket | None:
        """The one of this number, while it is there."""
        return self._tickets.get(order)

    def at(self, *stages: Stage) -> list[Ticket]:
        """Those that stand at one of these stages."""
        return [ticket for ticket in self.tickets if ticket.stage in stages]

    @property
    def in_turn(self) -> list[Ticket]:
        """Those that are not begun and may be, as far as their owners' bounds on jobs at work go."""
        return [ticket for ticket in in_turn(self.tickets) if not ticket.begun]

    def waiting_for(self, entry: ModelEntry) -> list[Ticket]:
        """Those of a model that are not begun."""
        return [ticket for ticket in self.at(Stage.WAITING) if ticket.key.model == entry.identity]

    @property
    def needed(self) -> set[str]:
        """The models that any of them is made with, by identity."""
        return {ticket.key.model for ticket in self.tickets}

    @property
    def busy(self) -> set[str]:
        """The models with images in flight, by identity."""
        return {ticket.key.model for ticket in self.tickets if ticket.begun}
