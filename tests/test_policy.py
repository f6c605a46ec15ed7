"""The policy alone: no clock, no torch, no event loop."""

from dataclasses import dataclass

from pipelines.profile import Profile
from pipelines.request import BatchKey
from server.scheduling.cost import CostModel
from server.scheduling.fairness import MOST_SHARES
from server.scheduling.policy import (
    BATCHES_BEGUN,
    DECODE_PIXELS,
    STARVED,
    URGENT_BATCHES,
    admit,
    decode,
    next_model,
    not_held,
    presses,
    ride,
)

SMALL, LARGE, OTHER = BatchKey("m", 64, 64), BatchKey("m", 128, 128), BatchKey("other", 64, 64)

IDLE = Profile(flops=(0.0, 1.0, 0.0), steps=((1.0, 0.01), (1e9, 0.01)), encode_seconds=0.0, decode_seconds=1e-9)
"""A device that no batch fills: a step takes as long whatever rides."""

FULL = Profile(flops=(0.0, 1.0, 0.0), steps=((1.0, 1e-6), (1e9, 1e3)), encode_seconds=0.0, decode_seconds=1e-9)
"""A device that one row fills: two rows take twice as long."""


EIGHT = Profile(
    flops=(0.0, 1.0, 0.0), steps=((1.0, 0.02), (8 * 4096.0, 0.02), (8e6, 20.0)), encode_seconds=0.0, decode_seconds=1e-9
)
"""A device that eight small rows fill, or two large ones."""


@dataclass(frozen=True)
class Picture:
    order: int
    key: BatchKey = SMALL
    rows: int = 2
    priority: int = 0
    evaluations_left: int = 10
    shares: float = 0.0
    pressing: bool = False


def costs(profile: Profile = IDLE) -> CostModel:
    cost = CostModel()
    for model in ("m", "other"):
        cost.adopt(model, profile)
    return cost


def orders(batch: list[Picture]) -> list[int]:
    return [picture.order for picture in batch]


def riding(*images: Picture, profile: Profile = IDLE, most: int = 16, crowd: int = 1) -> list[int]:
    return orders(ride(images, costs(profile), lambda key: most, crowd))


def test_rows_of_one_key_ride_together_up_to_the_cap() -> None:
    assert riding(Picture(0), Picture(1, LARGE), Picture(2, rows=1), Picture(3), Picture(4), most=6) == [2, 0, 3]


def test_a_single_image_rides_even_when_the_cap_is_smaller_than_its_rows() -> None:
    assert riding(Picture(0), most=1) == [0]


def test_a_smaller_image_fills_the_row_that_a_larger_one_cannot() -> None:
    assert riding(Picture(0, evaluations_left=1), Picture(1), Picture(2, rows=1), most=3) == [0, 2]


def test_nothing_running_means_nothing_rides() -> None:
    assert riding() == []


def test_what_is_nearly_done_goes_first() -> None:
    assert riding(Picture(0, evaluations_left=20), Picture(1, LARGE, evaluations_left=3)) == [1]


def test_on_a_device_with_room_they_ride_together_and_on_a_full_one_one_after_the_other() -> None:
    images = [Picture(0, evaluations_left=5), Picture(1, evaluations_left=10)]
    assert riding(*images, profile=IDLE) == [0, 1]
    assert riding(*images, profile=FULL) == [0]


def test_a_small_shape_does_not_wait_for_a_large_one_that_costs_more() -> None:
    assert riding(Picture(0, LARGE), Picture(1), profile=FULL) == [1]


def test_a_lone_shape_is_not_held_back_for_want_of_mates_that_are_not_there() -> None:
    # On a device that is idle until eight rows are there: a thumbnail alone has a quarter of its best throughput.
    lone = Picture(0, evaluations_left=10)
    posters = [Picture(order, LARGE, evaluations_left=20) for order in range(1, 13)]
    assert riding(lone, *posters, profile=EIGHT, crowd=13) == [0]


def test_a_backlog_makes_full_batches_worth_more() -> None:
    lone = Picture(0, evaluations_left=4)
    alike = [Picture(order, LARGE, evaluations_left=30) for order in range(1, 5)]
    assert riding(lone, *alike, crowd=1) == [0]
    assert riding(lone, *alike, crowd=50) == [1, 2, 3, 4]


def test_a_deadline_presses_when_only_going_on_now_keeps_it() -> None:
    assert [presses(slack, solo=4.0) for slack in (-1.5, -0.5, 1, 2, 3)] == [False, True, True, True, False]
    assert presses(0.2, solo=0.1), "or it might be over before anybody looks"


def test_of_the_starved_whoever_waited_longest_goes_first_whatever_its_class() -> None:
    patient = Picture(0, LARGE, priority=-5, evaluations_left=100, shares=50 * STARVED)
    urgent = [Picture(order, evaluations_left=1, shares=STARVED + 0.1) for order in (1, 2)]
    assert riding(patient, *urgent) == [0]


def test_age_counts_and_past_its_bound_goes_before_everything_of_its_class() -> None:
    young, old = Picture(0, evaluations_left=5), Picture(1, LARGE, evaluations_left=9, shares=1.0)
    assert riding(young, old) == [1]
    ancient = Picture(1, LARGE, evaluations_left=500, shares=MOST_SHARES)
    assert riding(young, ancient) == [1]
    assert riding(Picture(0, priority=1), ancient) == [0]


def test_the_starved_go_before_everybody() -> None:
    assert riding(Picture(0, priority=10), Picture(1, LARGE, evaluations_left=500, shares=STARVED)) == [1]


def test_a_deadline_at_stake_goes_first_within_its_class() -> None:
    assert riding(Picture(0, evaluations_left=1), Picture(1, LARGE, pressing=True)) == [1]
    assert riding(Picture(0, priority=1), Picture(1, LARGE, pressing=True)) == [0]


def test_the_highest_class_has_the_device_and_lower_ones_fill_rows_that_cost_nothing() -> None:
    images = [Picture(0), Picture(1, LARGE, priority=5), Picture(2, LARGE), Picture(3, SMALL)]
    assert riding(*images) == [1, 2]
    assert riding(*images, profile=FULL) == [1]


def test_priority_decides_who_rides_when_there_is_not_room_for_all() -> None:
    assert riding(Picture(0), Picture(1), Picture(2, priority=1), most=4) == [2, 0]


def admitted(waiting: list[Picture], begun: list[Picture] | None = None, most: int = 4) -> list[int]:
    return orders(admit(waiting, begun or [], costs(), lambda key: most, most))


def test_who_rides_next_and_right_after_is_begun_and_nobody_else() -> None:
    assert admitted([Picture(order) for order in range(10)]) == [0, 1, 2, 3]
    assert admitted([Picture(9)], [Picture(order) for order in range(4)]) == []


def test_a_key_that_is_served_already_does_not_hold_up_a_better_one() -> None:
    assert admitted([Picture(9), Picture(10, LARGE, evaluations_left=1)], [Picture(o) for o in range(4)]) == [10]


def test_what_is_begun_is_bounded_even_where_newcomers_are_ever_better() -> None:
    begun = [Picture(order) for order in range(2 * URGENT_BATCHES)]
    assert admitted([Picture(99, evaluations_left=1)], begun) == []
    assert admitted([Picture(99, evaluations_left=1)], begun[1:]) == [99]
    assert BATCHES_BEGUN < URGENT_BATCHES


def test_one_image_is_always_begun_where_nothing_is() -> None:
    assert admitted([Picture(0, rows=9)], most=1) == [0]


def test_one_model_is_begun_at_a_time() -> None:
    assert admitted([Picture(0), Picture(1, OTHER), Picture(2)], most=16) == [0, 2]


def test_the_next_model_is_that_of_the_foremost_image_without_one() -> None:
    waiting = [Picture(0), Picture(1, OTHER), Picture(2, OTHER, priority=1)]
    assert next_model(waiting, {"other"}) == waiting[2]
    assert next_model(waiting, {"m", "other"}) == waiting[2]
    assert next_model(waiting[:2], {"m", "other"}) == waiting[0]
    assert next_model(waiting, set()) is None


def crowding(model: str) -> set[str]:
    """Neither of the two fits beside the other."""
    return {"other"} if model == "m" else {"m"}


def test_a_swap_that_is_due_holds_back_the_models_in_its_way_but_no_higher_class() -> None:
    ready = [Picture(0), Picture(1, priority=1)]
    assert not_held(ready, [*ready, Picture(2, OTHER, shares=0.9)], crowding) == ready
    assert not_held(ready, [*ready, Picture(2, OTHER, shares=1.0)], crowding) == ready[1:]
    assert not_held(ready, [*ready, Picture(2, OTHER, shares=1.0)], lambda model: set()) == ready


def test_models_whose_turn_it_is_do_not_hold_each_other_for_ever() -> None:
    eldest, other = Picture(0, shares=2.5), Picture(1, OTHER, shares=2.0)
    assert not_held([eldest], [eldest, other], crowding) == [eldest]
    assert not_held([other], [eldest, other], crowding) == []


def test_decoding_is_by_key_and_bounded_by_pixels() -> None:
    huge = BatchKey("m", 2048, 1024)
    assert orders(decode([Picture(0, huge), Picture(1, SMALL), Picture(2, huge), Picture(3, huge)])) == [0, 2]
    assert DECODE_PIXELS // (2048 * 1024) == 2
    assert orders(decode([Picture(0, BatchKey("m", 4096, 4096))])) == [0]
    assert orders(decode([Picture(0), Picture(1, LARGE, priority=1)])) == [1]
    assert decode([]) == []
