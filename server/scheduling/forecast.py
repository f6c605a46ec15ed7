"""When each image will be done: the policy itself, played forward over what is there now. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pipelines.request import BatchKey
from server.scheduling.cost import CostModel
from server.scheduling.fairness import FairClock, Tenant
from server.scheduling.policy import Caps, Turn, in_turn, presses, ride

STRIDE = 8
"""Steps that one look at the queue decides: between them only ages change, and those change little."""

MOST_LOOKS = 3_000
"""Looks at an image that a forecast may take, on the event loop; the rest of a queue is reckoned in bulk."""


@dataclass(eq=False, kw_only=True)
class Plan:
    """An image as the forecast moves it along; a `Candidate` of the policy.

    `entered` is where its tenant's fair clock stood when it came, `solo` its seconds alone on the device, and
    `slack` the seconds it can afford to wait, where it has a deadline.
    """

    key: BatchKey
    rows: int
    priority: int
    order: int
    evaluations_left: int
    tenant: Tenant
    entered: float
    solo: float
    clock: FairClock
    begun: bool = False
    slack: float | None = None
    ahead: bool = False
    turn: Turn | None = None
    done: float | None = None

    @property
    def pressing(self) -> bool:
        return self.ahead or (self.slack is not None and presses(self.slack, self.solo))

    @property
    def shares(self) -> float:
        return self.clock.received(self.tenant, self.entered) / self.solo


def forecast(
    plans: Sequence[Plan],
    clock: FairClock,
    cost: CostModel,
    caps: Caps,
    until: Collection[int] = (),
    most_looks: int = MOST_LOOKS,
) -> None:
    """Fill in each plan's `done`, in seconds from now, as if nobody else came.

    Args:
        plans: every image there is.
        clock: the fair clock as it stands.
        until: the orders of the images whose end is asked for, if not everybody's.
        most_looks: at an image; what is not forecast by then is reckoned in bulk.
    """
    ahead = clock.copy()
    left = [replace(plan, clock=ahead) for plan in plans]
    asked = set(until) or {plan.order for plan in plans}
    ends: dict[int, float] = {}
    now, looks = 0.0, 0
    while left and looks < most_looks and not asked <= ends.keys():
        looks += len(left)
        batch = ride([plan for plan in in_turn(left) if plan.evaluations_left], cost, caps, len(left))
        began = now
        now += _advance(batch, left, cost)
        for plan in [plan for plan in left if plan.evaluations_left <= 0]:
            now += cost.decode_seconds(plan.key)
            ends[plan.order] = now
            left.remove(plan)
            ahead.leave(plan.tenant)
        for plan in left:
            if plan.slack is not None and plan not in batch:
                plan.slack -= now - began
        ahead.advance(now - began)
    _in_bulk(left, now, cost, caps, ends)
    for plan in plans:
        plan.done = ends.get(plan.order)


def _advance(batch: Sequence[Plan], left: Sequence[Plan], cost: CostModel) -> float:
    """Take the batch some steps on; the seconds that takes."""
    if not batch:
        return 0.0
    steps = min(STRIDE, *(plan.evaluations_left for plan in batch))
    seconds = steps * cost.step_seconds(batch[0].key, sum(plan.rows for plan in batch))
    for plan in batch:
        plan.evaluations_left -= steps
        if not plan.begun:
            plan.begun = True
            seconds += cost.encode_seconds(plan.key.model)
    return seconds


def _in_bulk(left: Sequence[Plan], now: float, cost: CostModel, caps: Caps, ends: dict[int, float]) -> None:
    """The rest one after the other, the shortest first within each class, at the throughput of full batches."""

    def seconds(plan: Plan) -> float:
        return cost.share_seconds(plan.key, plan.rows, plan.evaluations_left, caps(plan.key))

    for plan in sorted(left, key=lambda plan: (-plan.priority, seconds(plan))):
        now += seconds(plan)
        ends[plan.order] = now
