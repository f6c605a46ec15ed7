"""What work costs: profiles, their curves, and the corrections that real steps make."""

import pytest

from pipelines.profile import Profile, curve_of, fit_flops, read_curve
from pipelines.request import BatchKey
from server.scheduling.cost import LEAST_FIRST_SECONDS, CostModel

SMALL, LARGE, OTHER = BatchKey("m", 64, 64), BatchKey("m", 128, 128), BatchKey("other", 64, 64)

# A device that takes 10 ms however little there is to do, and from 40,960 operations on a rate of its own.
PROFILE = Profile(
    flops=(0.0, 1.0, 0.0),
    steps=((4096.0, 0.010), (40960.0, 0.010), (409600.0, 0.100)),
    encode_seconds=0.002,
    decode_seconds=1e-6,
)


def model() -> CostModel:
    cost = CostModel()
    cost.adopt("m", PROFILE)
    return cost


def test_a_curve_is_flat_before_its_points_and_at_its_rate_beyond_them() -> None:
    points = ((10.0, 1.0), (20.0, 3.0), (40.0, 4.0))
    assert [read_curve(points, work) for work in (1, 10, 15, 20, 30, 40, 80)] == [1, 1, 2, 3, 3.5, 4, 8]


def test_noise_that_says_more_work_takes_less_time_is_levelled() -> None:
    assert curve_of([(2, 3.0), (1, 1.0), (3, 1.0), (4, 5.0)]) == ((1, 1.0), (2, 2.0), (3, 2.0), (4, 5.0))


def test_three_counts_give_the_coefficients_of_operations_over_pixels() -> None:
    counted = [(pixels, 7 + 3 * pixels + 2 * pixels**2) for pixels in (4, 9, 16)]
    assert fit_flops(counted) == pytest.approx((7, 3, 2))
    assert fit_flops([(4, 12.0)]) == (0, 3, 0)


def test_shapes_that_were_not_measured_are_read_off_their_operations() -> None:
    cost = model()
    assert cost.step_seconds(LARGE, 1) == cost.step_seconds(SMALL, 4)
    assert cost.step_seconds(SMALL, 100) == pytest.approx(0.100)


def test_the_knee_is_where_the_device_is_full() -> None:
    cost = model()
    assert cost.knee(SMALL, 16) == 10
    assert cost.knee(SMALL, 4) == 4
    assert cost.knee(LARGE, 16) == 3  # 2 rows leave a fifth of the device idle
    assert cost.efficiency(SMALL, 10, 16) == pytest.approx(1)
    assert cost.efficiency(SMALL, 5, 16) == pytest.approx(0.5)


def test_real_steps_correct_their_rows_their_shape_and_their_model() -> None:
    cost = model()
    for _ in range(200):
        cost.observe_step(SMALL, 2, 0.020)
    assert cost.step_seconds(SMALL, 2) == pytest.approx(0.020)
    assert cost.step_seconds(SMALL, 4) == pytest.approx(0.020), "the nearest rows that were seen"
    assert cost.step_seconds(LARGE, 1) == pytest.approx(0.020), "the model as a whole"
    for _ in range(2):
        cost.observe_step(LARGE, 1, 0.010)
    assert cost.step_seconds(LARGE, 1) == pytest.approx(0.010), "its own shape counts more"
    for _ in range(200):
        cost.observe_step(SMALL, 2, 0.005)
    assert cost.step_seconds(SMALL, 2) == pytest.approx(0.005, rel=0.01), "it follows the device"


def test_the_first_step_of_its_kind_teaches_nothing_and_is_given_time() -> None:
    cost = model()
    assert cost.expected_step(SMALL, 2) == LEAST_FIRST_SECONDS
    cost.observe_step(SMALL, 2, 30.0)
    assert cost.step_seconds(SMALL, 2) == cost.expected_step(SMALL, 2) == pytest.approx(0.010)


def test_one_step_that_took_very_long_is_soon_forgotten_and_hardly_touches_other_shapes() -> None:
    cost = model()
    for _ in range(100):
        cost.observe_step(SMALL, 2, 0.010)
        cost.observe_step(LARGE, 2, 0.020)
    cost.observe_step(SMALL, 2, 30.0)
    assert cost.step_seconds(SMALL, 2) < 0.012
    assert cost.step_seconds(LARGE, 2) < 0.022


def test_a_machine_that_grows_slower_makes_every_shape_dearer() -> None:
    cost = model()
    for _ in range(50):
        cost.observe_step(SMALL, 2, 0.010)
        cost.observe_step(LARGE, 2, 0.020)
    for _ in range(100):
        cost.observe_step(SMALL, 2, 0.020)
    assert cost.step_seconds(SMALL, 2) == pytest.approx(0.020, rel=0.05)
    assert cost.step_seconds(LARGE, 2) > 0.025


def test_encoding_and_decoding_are_corrected_too() -> None:
    cost = model()
    assert cost.encode_seconds("m") == 0.002
    assert cost.decode_seconds(SMALL) == pytest.approx(4096e-6)
    for _ in range(200):
        cost.observe_encode("m", 4, 0.016)
        cost.observe_decode(SMALL, 2, 0.016384)
    assert cost.encode_seconds("m") == pytest.approx(0.004)
    assert cost.decode_seconds(SMALL) == pytest.approx(2 * 4096e-6)


def test_an_image_alone_and_its_part_of_a_full_server() -> None:
    cost = model()
    assert cost.solo_seconds(SMALL, 2, 10) == pytest.approx(0.002 + 10 * 0.010 + 4096e-6)
    assert cost.share_seconds(SMALL, 2, 10, most=10) == pytest.approx(10 * 0.010 * 2 / 10 + 4096e-6)


def test_a_model_nobody_measured_has_an_estimate_that_its_first_step_replaces() -> None:
    cost = CostModel()
    assert cost.step_seconds(OTHER, 2) > 0
    cost.observe_step(OTHER, 2, 0.5)
    assert cost.step_seconds(OTHER, 2) == pytest.approx(0.5)
    assert cost.step_seconds(SMALL, 2) < 0.5, "another model's steps say nothing"


def test_a_new_profile_replaces_what_was_seen_before() -> None:
    cost = model()
    for _ in range(2):
        cost.observe_step(SMALL, 2, 0.5)
    cost.adopt("m", PROFILE)
    assert cost.step_seconds(SMALL, 2) == pytest.approx(0.5), "the same one again, as when a model comes back"
    slower = Profile(PROFILE.flops, ((4096.0, 0.030),), 0.002, 1e-6)
    cost.adopt("m", slower)
    assert cost.step_seconds(SMALL, 1) == pytest.approx(0.030)


def test_how_long_a_beginning_may_take_is_known_once_the_model_is_and_the_cache_does_not_shorten_it() -> None:
    cost = model()
    assert CostModel().expected_encode("m", 3) is None
    assert cost.expected_encode("m", 3) == pytest.approx(3 * PROFILE.encode_seconds)
    for _ in range(50):
        cost.observe_encode("m", 1, 1e-6)  # each of its prompts was kept
    assert cost.expected_encode("m", 3) == pytest.approx(3 * PROFILE.encode_seconds)
    slow = model()
    slow.observe_encode("m", 2, 2 * 0.1)
    assert slow.expected_encode("m", 3) == pytest.approx(3 * 0.1)
    unmeasured = CostModel()
    unmeasured.observe_encode("m", 1, 0.5)
    assert unmeasured.expected_encode("m", 2) == pytest.approx(2 * 0.5)


def test_operations_are_counted_once_a_model_was_measured() -> None:
    cost = CostModel()
    assert cost.flops(SMALL, 2) == 0, "nobody knows"
    assert list(cost.seen(SMALL.model)) == []
    cost.adopt(SMALL.model, PROFILE)
    assert cost.flops(SMALL, 2) == 2 * PROFILE.row_flops(SMALL.width * SMALL.height)
    cost.observe_step(SMALL, 4, 0.1)
    assert {size: list(rows) for size, rows in cost.seen(SMALL.model).items()} == {(SMALL.width, SMALL.height): [4]}
