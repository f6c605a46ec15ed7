"""The fair clock: what everybody would have had, had the device been shared equally."""

import pytest

from server.scheduling.fairness import FairClock

ONE, MANY = ("one", ""), ("many", "")


def test_owners_share_the_device_and_each_owners_images_its_part() -> None:
    clock = FairClock()
    one = clock.enter(ONE)
    many = [clock.enter(MANY) for _ in range(3)]
    clock.advance(6.0)
    assert clock.received(ONE, one) == pytest.approx(3.0)
    assert [clock.received(MANY, since) for since in many] == pytest.approx([1.0] * 3)


def test_the_users_of_an_owner_share_its_part_and_take_nothing_from_others() -> None:
    clock = FairClock()
    greedy, modest = ("shop", "greedy"), ("shop", "modest")
    since = {tenant: clock.enter(tenant) for tenant in (ONE, greedy, modest)}
    for _ in range(2):
        clock.enter(greedy)
    clock.advance(12.0)
    had = {tenant: clock.received(tenant, start) for tenant, start in since.items()}
    assert had == pytest.approx({ONE: 6.0, greedy: 1.0, modest: 3.0})


def test_who_comes_later_has_had_less() -> None:
    clock = FairClock()
    first = clock.enter(ONE)
    clock.advance(4.0)
    second = clock.enter(ONE)
    clock.advance(4.0)
    assert clock.received(ONE, first) == pytest.approx(6.0)
    assert clock.received(ONE, second) == pytest.approx(2.0)


def test_who_goes_leaves_more_to_the_others_and_nothing_behind() -> None:
    clock = FairClock()
    one, _ = clock.enter(ONE), clock.enter(MANY)
    clock.leave(MANY)
    clock.advance(1.0)
    assert clock.received(ONE, one) == pytest.approx(1.0)
    clock.leave(ONE)
    clock.advance(1.0)
    assert not clock._images and not clock._each


def test_a_copy_goes_its_own_way() -> None:
    clock = FairClock()
    since = clock.enter(ONE)
    clock.copy().advance(5.0)
    assert clock.received(ONE, since) == 0
