"""What is asked of the simulated servers, and when. Pure, and the same for a seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

QUICK_SHARE = 0.15
"""The share of requests of 4 steps without guidance, as previews and Turbo models make them."""

DATASET_C = ((0.5, 20, 0.15), (0.75, 20, 0.25), (1.0, 25, 0.45), (1.5, 35, 0.15))
"""Factor of the native side, steps and share: vllm-omni's Dataset C (512, 768, 1024 and 1536 pixels)."""

BURST = 12
"""Images that a batch job of the bursty trace brings at once."""

INTERACTIVE, BATCH = 0, -5
"""The priorities of people who wait and of jobs that nobody waits for."""


@dataclass(frozen=True)
class Wish:
    """What an image is, whenever it is asked for: side in pixels, steps, rows of a forward pass."""

    side: int
    steps: int
    rows: int = 2
    priority: int = INTERACTIVE
    owner: str = "anna"


@dataclass(frozen=True)
class Request:
    """One image asked for, `at` seconds after the start."""

    at: float
    wish: Wish


def uniform(native: int, count: int, random: Random) -> list[list[Wish]]:
    """Everybody wants the same."""
    return [[Wish(native, 25)] for _ in range(count)]


def mixed(native: int, count: int, random: Random) -> list[list[Wish]]:
    """Dataset C and quick unguided requests."""
    return [[_of_mixture(native, random)] for _ in range(count)]


def bursty(native: int, count: int, random: Random) -> list[list[Wish]]:
    """Dataset C by people who wait, of three owners; and now and then a batch job of a dozen posters by a fourth."""
    arrivals: list[list[Wish]] = []
    while sum(map(len, arrivals)) < count:
        if random.random() < 0.02:
            arrivals.append([Wish(round(1.5 * native), 35, 2, BATCH, "robot")] * BURST)
        else:
            wish = _of_mixture(native, random)
            owner = random.choice(("anna", "bert", "cleo"))
            arrivals.append([Wish(wish.side, wish.steps, wish.rows, INTERACTIVE, owner)])
    return arrivals


TRACES: dict[str, Callable[[int, int, Random], list[list[Wish]]]] = {
    "uniform": uniform,
    "mixed": mixed,
    "bursty": bursty,
}


def _of_mixture(native: int, random: Random) -> Wish:
    if random.random() < QUICK_SHARE:
        return Wish(native, 4, 1)
    factor, steps, _ = random.choices(DATASET_C, [share for _, _, share in DATASET_C])[0]
    return Wish(round(factor * native), steps)


def poisson(arrivals: Sequence[Sequence[Wish]], load: float, solo: Callable[[Wish], float], seed: int) -> list[Request]:
    """Arrivals in a Poisson process, at `load` times the rate that one picture after the other would keep up with.

    Another load gives the same arrivals, closer together.

    Args:
        solo: seconds of an image with the device to itself.
    """
    random = Random(seed)
    each = sum(solo(wish) for wishes in arrivals for wish in wishes) / len(arrivals)
    times = accumulate(random.expovariate(1.0) * each / load for _ in arrivals)
    return [Request(at, wish) for at, wishes in zip(times, arrivals, strict=True) for wish in wishes]
