"""The fair clock: what everybody would have had, had the device been shared equally."""

import pytest

from server.scheduling.fairness import FairClock


def test_owners_share_the_device_and_each_owners_images_its_part() -> None:
    clock = FairClock()
    one = clock.enter("one")
    many = [clock.enter("many") for _ in range(3)]
    clock.advance(6.0)
    assert clock.received("one", one) == pytest.approx(3.0)
    assert [clock.received("many", since) for since in many] == pytest.approx([1.0] * 3)


def test_who_comes_later_has_had_less() -> None:
    clock = FairClock()
    first = clock.enter("a")
    clock.advance(4.0)
    second = clock.enter("a")
    clock.advance(4.0)
    assert clock.received("a", first) == pytest.approx(6.0)
    assert clock.received("a", second) == pytest.approx(2.0)


def test_who_goes_leaves_more_to_the_others_and_nothing_behind() -> None:
    clock = FairClock()
    a, _ = clock.enter("a"), clock.enter("b")
    clock.leave("b")
    clock.advance(1.0)
    assert clock.received("a", a) == pytest.approx(1.0)
    clock.leave("a")
    clock.advance(1.0)
    assert not clock._images and not clock._each


def test_a_copy_goes_its_own_way() -> None:
    clock = FairClock()
    since = clock.enter("a")
    clock.copy().advance(5.0)
    assert clock.received("a", since) == 0
