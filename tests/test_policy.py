"""The policy alone: no clock, no torch, no event loop."""

from dataclasses import dataclass

from pipelines.request import BatchKey
from server.scheduling.cost import UNKNOWN_SECONDS_PER_ROW, CostModel
from server.scheduling.policy import DECODE_PIXELS, admit, decode, ride

SMALL, LARGE, OTHER = BatchKey("m", 64, 64), BatchKey("m", 128, 128), BatchKey("other", 64, 64)


@dataclass(frozen=True)
class Picture:
    order: int
    key: BatchKey = SMALL
    rows: int = 2
    priority: int = 0
    evaluations_left: int = 10


def orders(batch: list[Picture]) -> list[int]:
    return [picture.order for picture in batch]


def test_rows_of_one_key_ride_together_up_to_the_cap() -> None:
    running = [Picture(0), Picture(1, LARGE), Picture(2, rows=1), Picture(3), Picture(4)]
    assert orders(ride(running, {}, max_rows=6)) == [0, 2, 3]


def test_a_single_image_rides_even_when_the_cap_is_smaller_than_its_rows() -> None:
    assert orders(ride([Picture(0)], {}, max_rows=1)) == [0]


def test_a_smaller_image_fills_the_row_that_a_larger_one_cannot() -> None:
    assert orders(ride([Picture(0), Picture(1), Picture(2, rows=1)], {}, max_rows=3)) == [0, 2]


def test_keys_take_turns_so_that_no_shape_starves() -> None:
    running = [Picture(0), Picture(1), Picture(2, LARGE), Picture(3, OTHER)]
    served = {SMALL: 1, LARGE: 2, OTHER: 3}
    turns = []
    for turn in range(4, 10):
        key = ride(running, served, max_rows=16)[0].key
        served[key] = turn
        turns.append(key)
    assert turns == [SMALL, LARGE, OTHER] * 2


def test_a_key_that_just_appeared_waits_for_those_before_it() -> None:
    assert ride([Picture(5, LARGE), Picture(0)], {SMALL: 3, LARGE: 4}, max_rows=16)[0].key == SMALL


def test_the_highest_priority_has_the_device_to_itself_and_its_key_is_filled_up() -> None:
    running = [Picture(0), Picture(1, LARGE, priority=5), Picture(2, LARGE), Picture(3, SMALL)]
    assert orders(ride(running, {SMALL: 0, LARGE: 9}, max_rows=16)) == [1, 2]


def test_priority_decides_who_rides_when_there_is_not_room_for_all() -> None:
    running = [Picture(0), Picture(1), Picture(2, priority=1)]
    assert orders(ride(running, {}, max_rows=4)) == [2, 0]


def test_nothing_running_means_nothing_rides() -> None:
    assert ride([], {}, max_rows=4) == []


def admitted(waiting: list[Picture], running: list[Picture] | None = None, **facts: object) -> list[int]:
    usual: dict[str, object] = {"max_rows": 4, "resident": ["m"], "busy": set(), "crowded_out": set()}
    return orders(admit(waiting, running or [], **(usual | facts)))  # type: ignore[arg-type]


def test_images_are_begun_two_batches_ahead_and_no_further() -> None:
    assert admitted([Picture(order) for order in range(10)]) == [0, 1, 2, 3]
    assert admitted([Picture(9)], [Picture(order) for order in range(4)]) == []


def test_a_full_key_does_not_hold_up_another() -> None:
    assert admitted([Picture(9), Picture(10, LARGE)], [Picture(order) for order in range(4)]) == [10]


def test_images_of_many_sizes_are_begun_four_batches_ahead_and_no_further() -> None:
    sizes = [Picture(order, BatchKey("m", 64, 8 * order)) for order in range(1, 501)]
    assert admitted(sizes) == list(range(1, 9))
    assert admitted(sizes[8:], sizes[:7]) == [9]
    assert admitted(sizes[8:], sizes[:8]) == []


def test_one_image_is_always_begun_where_nothing_is() -> None:
    assert admitted([Picture(0, rows=9), Picture(1)], max_rows=1) == [0]


def test_an_urgent_image_is_begun_whatever_lesser_ones_are() -> None:
    lesser = [Picture(order) for order in range(4)]
    assert admitted([Picture(8), Picture(9, priority=1)], lesser) == [9]
    lesser = [Picture(order, BatchKey("m", 64, 8 * order)) for order in range(1, 9)]
    assert admitted([Picture(9, priority=1)], lesser) == [9]


def test_images_as_urgent_or_more_count_among_those_ahead() -> None:
    urgent = [Picture(order, priority=1 + order % 2) for order in range(4)]
    assert admitted([Picture(8, priority=1), Picture(9)], urgent) == []
    assert admitted([Picture(8, priority=2), Picture(9)], urgent) == [8]


def test_one_model_is_begun_at_a_time() -> None:
    waiting = [Picture(0), Picture(1, OTHER), Picture(2)]
    assert admitted(waiting, resident=["m", "other"]) == [0, 2]


def test_a_swap_waits_for_room_and_holds_back_those_behind_it() -> None:
    waiting = [Picture(0, OTHER), Picture(1)]
    assert admitted(waiting, busy={"m"}, crowded_out={"other"}) == []
    assert admitted(waiting, busy=set(), crowded_out=set()) == [0]


def test_a_model_that_is_being_loaded_counts_as_there() -> None:
    assert admitted([Picture(0, OTHER)], busy={"other"}, crowded_out={"other"}) == [0]


def test_decoding_is_by_key_and_bounded_by_pixels() -> None:
    huge = BatchKey("m", 2048, 1024)
    assert orders(decode([Picture(0, huge), Picture(1, SMALL), Picture(2, huge), Picture(3, huge)])) == [0, 2]
    assert DECODE_PIXELS // (2048 * 1024) == 2
    assert orders(decode([Picture(0, BatchKey("m", 4096, 4096))])) == [0]
    assert decode([]) == []


def test_cost_is_learnt_per_row_and_scaled_to_sizes_never_seen() -> None:
    cost = CostModel()
    assert cost.seconds_per_row(SMALL) == UNKNOWN_SECONDS_PER_ROW
    cost.observe(SMALL, rows=4, seconds=0.4)
    assert cost.seconds_per_row(SMALL) == 0.1
    assert cost.seconds_per_row(LARGE) == 0.4
    assert cost.seconds_per_row(OTHER) == UNKNOWN_SECONDS_PER_ROW
    assert cost.seconds_left([Picture(0), Picture(1, rows=1)]) == 0.1 * 10 * 3


def test_cost_follows_the_device_when_it_slows_down() -> None:
    cost = CostModel()
    for _ in range(60):
        cost.observe(SMALL, rows=1, seconds=0.1)
    for _ in range(60):
        cost.observe(SMALL, rows=1, seconds=0.3)
    assert abs(cost.seconds_per_row(SMALL) - 0.3) < 0.001
