"""Forecasts: the policy played forward, and what is told from it."""

import asyncio
from typing import Any

import pytest

from pipelines.request import BatchKey
from server.scheduling import forecast as forecasting
from server.scheduling.books import Books
from server.scheduling.cost import CostModel
from server.scheduling.fairness import FairClock
from server.scheduling.forecast import Plan, forecast
from server.scheduling.meter import Meter
from server.scheduling.outlook import MAX_RETRY_AFTER, Outlook
from server.scheduling.policy import Turn
from server.scheduling.queue import QueueFull, Submission, Ticket
from tests.fakes import FLAT, entry, request

KEY, WIDE = BatchKey("m", 64, 64), BatchKey("m", 128, 64)
STEP, ENCODE, DECODE = 0.001, 1e-4, 1e-8 * 64 * 64


def cost() -> CostModel:
    model = CostModel()
    model.adopt("m", FLAT)
    return model


def planned(*steps: int, keys: dict[int, BatchKey] | None = None, **facts: Any) -> tuple[list[Plan], FairClock]:
    clock = FairClock()
    plans = [
        Plan(
            key=(keys or {}).get(order, KEY), rows=2, priority=0, order=order, evaluations_left=left, tenant=("", ""),
            entered=clock.enter(("", "")), solo=left * STEP + ENCODE + DECODE, clock=clock, **facts,
        )
        for order, left in enumerate(steps)
    ]  # fmt: skip
    return plans, clock


def ends(plans: list[Plan], clock: FairClock, most: int = 8) -> list[float | None]:
    forecast(plans, clock, cost(), lambda key: most)
    return [plan.done for plan in plans]


def test_one_image_alone_takes_its_solo_time() -> None:
    plans, clock = planned(20)
    assert ends(plans, clock) == pytest.approx([20 * STEP + ENCODE + DECODE])


def test_images_that_ride_together_end_by_their_steps() -> None:
    plans, clock = planned(8, 24)
    first, second = 2 * ENCODE + 8 * STEP + DECODE, 2 * ENCODE + 24 * STEP + 2 * DECODE
    assert ends(plans, clock) == pytest.approx([first, second])


def test_an_owner_s_further_jobs_are_forecast_after_those_that_may_be_at_work() -> None:
    plans, clock = planned(8, 8, 8)
    for plan, job in zip(plans, "aab", strict=True):
        plan.turn = Turn("ann", job, 1)
    first = 2 * ENCODE + 8 * STEP + DECODE
    assert ends(plans, clock) == pytest.approx([first, first + DECODE, first + ENCODE + 8 * STEP + 2 * DECODE])


def test_shapes_that_cannot_share_a_step_end_one_after_the_other() -> None:
    plans, clock = planned(30, 10, keys={0: WIDE})
    done = ends(plans, clock)
    assert done[1] == pytest.approx(10 * STEP + ENCODE + DECODE)
    assert done[0] == pytest.approx(40 * STEP + 2 * ENCODE + 3 * DECODE)


def test_a_deadline_is_foreseen_to_press_when_its_time_comes() -> None:
    plans, clock = planned(200, 200, keys={1: WIDE})
    patient = ends(plans, clock)
    assert (patient[0] or 0) < (patient[1] or 0)
    plans, clock = planned(200, 200, keys={1: WIDE})
    plans[1].slack = 0.02
    hurried = ends(plans, clock)
    assert hurried[1] == pytest.approx(0.22, abs=0.03) and (hurried[0] or 0) > (hurried[1] or 0)


def test_an_image_at_its_decoding_is_nearly_done() -> None:
    plans, clock = planned(0, begun=True)
    assert ends(plans, clock) == pytest.approx([DECODE])


def test_a_forecast_changes_nothing_that_is() -> None:
    plans, clock = planned(8, 24)
    ends(plans, clock)
    assert [plan.evaluations_left for plan in plans] == [8, 24]
    assert [plan.begun for plan in plans] == [False, False]
    assert clock.received(("", ""), 0.0) == 0


def test_a_long_queue_is_reckoned_in_bulk_and_still_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [10 + 5 * order for order in range(40)]
    exact = ends(*planned(*steps), most=2)
    monkeypatch.setattr(forecasting, "MOST_LOOKS", 100)
    rough = ends(*planned(*steps), most=2)
    assert rough == sorted(rough, key=lambda end: end or 0)
    assert rough == pytest.approx(exact, rel=0.3)


def outlook(tickets: int = 0, **bounds: Any) -> tuple[Outlook, list[Ticket]]:
    books = Books(Meter())
    books.measured(entry().identity, FLAT)
    loop = asyncio.new_event_loop()
    waiting = [
        Ticket(
            entry(), request(steps=100 + order), Submission(), order, loop.create_future(), lambda _: None,
            books.clock, books.clock.enter(("", "")), 0.1,
        )
        for order in range(tickets)
    ]  # fmt: skip
    loop.close()
    usual = {"queue_limit": 10, "queue_seconds": 1e9}
    return Outlook(books, lambda key: 8, lambda model: 0.0, **(usual | bounds)), waiting


def test_the_backlog_is_what_full_batches_need() -> None:
    view, tickets = outlook(2)
    assert view.backlog(tickets) == pytest.approx((100 + 101) * STEP * 2 / 8 + 2 * DECODE, rel=0.01)


def test_the_queue_is_bounded_by_images_and_by_seconds_of_work() -> None:
    view, tickets = outlook(4, queue_limit=5)
    with view.reserve(tickets, 1, 0.0), pytest.raises(QueueFull, match="5 images"), view.reserve(tickets, 1, 0.0):
        pass
    view, tickets = outlook(4, queue_seconds=0.2)
    with view.reserve(tickets, 1, 0.01):
        pass
    with pytest.raises(QueueFull, match=r"0\.2 seconds of work"), view.reserve(tickets, 1, 0.2):
        pass


def test_an_idle_server_takes_any_request_and_one_at_a_time_that_is_too_large() -> None:
    for bounds, told in (({"queue_limit": 5}, "5 images"), ({"queue_seconds": 0.2}, r"0\.2 seconds of work")):
        view, _ = outlook(0, **({"queue_limit": 50} | bounds))
        for _ in range(2):
            with view.reserve([], 9, 1000.0), pytest.raises(QueueFull, match=told), view.reserve([], 1, 0.1):
                pass


def test_nobody_is_turned_away_on_a_guess_while_a_model_loads() -> None:
    view, _ = outlook(0, queue_seconds=0.2)
    assert view.work(entry("unmeasured"), [request("unmeasured", steps=150)] * 10) == 0


def test_retry_after_is_about_half_the_backlog_within_what_clients_heed() -> None:
    view, tickets = outlook(4)
    assert view.retry_after(tickets) == 1
    for _ in range(2):
        view._cost.observe_step(tickets[0].key, 2, 3.0)
    assert view.retry_after(tickets) == MAX_RETRY_AFTER


def test_a_model_that_must_be_loaded_first_is_waited_for() -> None:
    view, tickets = outlook(2)
    without = view.ends(tickets)
    view._absent = lambda model: 7.0 if model == entry().identity else 0.0
    assert view.ends(tickets) == [pytest.approx(7.0 + ticket.solo) for ticket in tickets]
    view._absent = lambda model: 1e-4
    assert view.end_of(tickets, tickets) == max(without), "others would have gone first anyway"


def test_the_end_of_some_images_is_the_same_asked_for_alone_and_among_all() -> None:
    view, tickets = outlook(3)
    tickets[0].evaluations_left = 400
    assert view.end_of(tickets[:1], tickets) == max(view.ends(tickets)) == view.ends(tickets)[0]
    assert view.end_of(tickets[1:], tickets) == max(view.ends(tickets)[1:]) < view.ends(tickets)[0]
