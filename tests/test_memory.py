"""Too little memory anywhere on a picture's way: what is freed first, what is halved, and that no picture changes."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.catalog import Catalog, ModelEntry
from pipelines.denoising import Denoising
from pipelines.device import pick_device
from pipelines.engine import Engine
from pipelines.errors import ImageFailed, ImageTooLarge
from pipelines.fitting import CAP_SECONDS, Fitting
from pipelines.request import BatchKey, Wishes, settle
from pipelines.samplers import Prediction, samplers_for
from tests.test_founding import TOLERANCE

STEPS = 3


@pytest.fixture(params=["tiny-sdxl", "tiny-sd3"])
def entry(request: pytest.FixtureRequest, catalog: Catalog, small: Engine) -> ModelEntry:
    found = catalog.resolve(request.param)
    small.load(found)
    return found


@pytest.fixture
def small() -> Engine:
    """An engine of its own: freeing memory unloads models."""
    return Engine(pick_device("cpu"))


def begin(engine: Engine, entry: ModelEntry, count: int, **wishes: Any) -> list[Denoising]:
    requests = [settle(Wishes(f"hat {seed}", steps=STEPS, **wishes), entry, seed) for seed in range(count)]
    images = [
        engine.begin(entry, [request], engine.encode(entry, [request]))[0]
        for request in requests  # one by one, so that an embedding has the same bits whoever else is there
    ]
    return [image for image in images if isinstance(image, Denoising)]


def run(engine: Engine, entry: ModelEntry, *batches: Sequence[Denoising]) -> None:
    for batch in batches:
        while not batch[0].finished:
            assert engine.step(entry, batch) == [None] * len(batch)


def bytes_of(pictures: Sequence[Image.Image | Exception]) -> list[bytes]:
    assert all(isinstance(picture, Image.Image) for picture in pictures), pictures
    return [picture.tobytes() for picture in pictures if isinstance(picture, Image.Image)]


def lacking(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, entry: ModelEntry, verb: str, lacks: Callable[[Any], bool]
) -> list[int]:
    """Plant a lack of memory in a network; gives the sizes of the batches it is asked for, as they come."""
    family, sizes = engine.family(entry), list[int]()
    original = getattr(family, verb)

    def patched(batch: Any) -> Any:
        sizes.append(len(batch))
        if lacks(batch):
            raise torch.OutOfMemoryError("planted")
        return original(batch)

    monkeypatch.setattr(family, verb, patched)
    return sizes


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M"])
def test_lack_of_memory_at_any_step_changes_no_picture(
    monkeypatch: pytest.MonkeyPatch, small: Engine, entry: ModelEntry, sampler: str
) -> None:
    together = begin(small, entry, 4, sampler=sampler)
    run(small, entry, together)
    for step in range(STEPS):
        batch = begin(small, entry, 4, sampler=sampler)
        with monkeypatch.context() as planted:
            sizes = lacking(
                planted, small, entry, "predict", lambda few, at=step: len(few) > 2 and few[0].evaluation == at
            )
            run(small, entry, batch)
        assert sizes[step : step + 4] == [4, 4, 2, 2], "all of them again once caches are freed, and then the halves"
        for image, other in zip(batch, together, strict=True):
            assert (image.latents - other.latents).abs().max() <= TOLERANCE * other.latents.abs().max()


def test_pictures_halved_throughout_have_the_bits_of_the_halves(
    monkeypatch: pytest.MonkeyPatch, small: Engine, entry: ModelEntry
) -> None:
    halves, batch = (begin(small, entry, 4, sampler="Euler a") for _ in range(2))
    run(small, entry, halves[:2], halves[2:])
    lacking(monkeypatch, small, entry, "predict", lambda images: len(images) > 2)
    run(small, entry, batch)
    for image, half in zip(batch, halves, strict=True):
        assert torch.equal(image.latents, half.latents)


def test_lack_of_memory_at_the_decode_changes_no_picture(
    monkeypatch: pytest.MonkeyPatch, small: Engine, entry: ModelEntry
) -> None:
    batch = begin(small, entry, 5)
    run(small, entry, batch)
    expected = bytes_of(small.finish(entry, batch[:2]) + small.finish(entry, batch[2:3])) + bytes_of(
        small.finish(entry, batch[3:])
    )
    sizes = lacking(monkeypatch, small, entry, "decode", lambda latents: len(latents) > 2)
    assert bytes_of(small.finish(entry, batch)) == expected
    assert sizes == [5, 5, 2, 3, 1, 2]
    assert small.state.row_caps == {}, "a decode's pictures are not a step's rows"


def test_lack_of_memory_while_prompts_are_read(
    monkeypatch: pytest.MonkeyPatch, small: Engine, entry: ModelEntry
) -> None:
    sizes = lacking(monkeypatch, small, entry, "encode", lambda requests: len(requests) > 1)
    requests = [settle(Wishes(f"hat {seed}"), entry, seed) for seed in range(2)]
    assert not any(isinstance(outcome, Exception) for outcome in small.encode(entry, requests))
    assert sizes == [2, 2, 1, 1]


def test_what_only_saves_time_is_given_up_first(
    monkeypatch: pytest.MonkeyPatch, small: Engine, catalog: Catalog
) -> None:
    sdxl, sd3 = catalog.resolve("tiny-sdxl"), catalog.resolve("tiny-sd3")
    small.load(sd3)
    small.load(sdxl)
    batch = begin(small, sdxl, 2)
    caches = [small.family(entry).cache for entry in (sdxl, sd3)]
    small.encode(sd3, [settle(Wishes("a hat"), sd3, 0)])
    assert all(cache._kept for cache in caches)
    sizes = lacking(monkeypatch, small, sdxl, "predict", lambda _: any(cache._kept for cache in caches))
    assert small.step(sdxl, batch) == [None, None]
    assert sizes == [2, 2]
    assert small.state.row_caps == {} and len(small.state.resident) == 2, "nothing more had to go"


def test_idle_models_go_before_the_batch_is_halved_and_busy_ones_never_do(
    monkeypatch: pytest.MonkeyPatch, small: Engine, catalog: Catalog
) -> None:
    sdxl, busy, idle = (catalog.resolve(name) for name in ("tiny-sdxl", "tiny-sd3", "tiny-sd3-t5"))
    for entry in (busy, idle, sdxl):
        small.load(entry)
    (held,) = begin(small, busy, 1)
    begin(small, idle, 1)  # and nobody keeps it
    batch = begin(small, sdxl, 2)
    sizes = lacking(monkeypatch, small, sdxl, "predict", lambda _: idle.identity in small.state.resident)
    assert small.step(sdxl, batch) == [None, None]
    assert sizes == [2, 2, 2]
    assert small.state.resident == (busy.identity, sdxl.identity)
    assert small.state.row_caps == {}
    sizes = lacking(monkeypatch, small, sdxl, "predict", lambda images: len(images) > 1)
    assert small.step(sdxl, batch) == [None, None]
    assert sizes == [2, 2, 1, 1]
    assert small.step(busy, [held]) == [None]


def test_a_key_keeps_the_rows_that_fitted_for_five_minutes(
    monkeypatch: pytest.MonkeyPatch, small: Engine, entry: ModelEntry
) -> None:
    now = 1000.0
    monkeypatch.setattr(small, "_fitting", Fitting(lambda: now))
    batch = begin(small, entry, 3) + begin(small, entry, 2, guidance_scale=1)
    lacking(monkeypatch, small, entry, "predict", lambda images: sum(image.rows for image in images) > 4)
    assert small.step(entry, batch) == [None] * 5
    assert small.state.row_caps == {BatchKey.of(entry, batch[0].request): 4}, "rows, not images"
    now += CAP_SECONDS - 1
    assert len(small.state.row_caps) == 1
    now += 1
    assert small.state.row_caps == {}


def test_a_cap_is_what_ran_below_what_did_not() -> None:
    key, fitting = BatchKey("m", 64, 64), Fitting(lambda: 0.0)
    for fitted, lacked, cap in (([4, 4], [8], 4), ([4, 2, 2], [8, 4], 2), ([2], [2], 2), ([], [4, 2, 2], 2)):
        fitting.halved(key, fitted, lacked)
        assert fitting.row_caps == {key: cap}
    nothing = Fitting()
    nothing.halved(key, [], [2])
    assert nothing.row_caps == {}


@pytest.mark.parametrize("verb", ["encode", "predict", "decode"])
def test_a_picture_too_large_even_alone_says_its_size_and_what_is_known_to_fit(
    monkeypatch: pytest.MonkeyPatch, small: Engine, entry: ModelEntry, verb: str
) -> None:
    def make(width: int) -> Any:
        request = settle(Wishes("a hat", width=width, steps=1, sampler="Euler"), entry, 0)
        outcome: Any = small.encode(entry, [request])[0]
        if not isinstance(outcome, Exception):
            (image,) = small.begin(entry, [request], [outcome])
            assert isinstance(image, Denoising)
            outcome = small.step(entry, [image])[0] or small.finish(entry, [image])[0]
        return outcome

    def short(batch: Any) -> bool:
        if isinstance(batch, torch.Tensor):
            return batch.shape[-1] > 16
        return max(getattr(item, "request", item).width for item in batch) > 32

    with monkeypatch.context() as planted:
        lacking(planted, small, entry, verb, short)
        first = make(48)
        assert isinstance(first, ImageTooLarge)
        assert "of 48x32; ask for a smaller size" in str(first)
        assert isinstance(make(32), Image.Image)
        assert "of 64x32; the largest of this model that is known to fit is 32x32." in str(make(64))
    assert isinstance(make(64), Image.Image)
    lacking(monkeypatch, small, entry, verb, lambda _: True)
    assert "of 48x32 now, though 64x32 did fit" in str(make(48))


def test_only_the_image_that_does_not_fit_fails(
    monkeypatch: pytest.MonkeyPatch, small: Engine, entry: ModelEntry
) -> None:
    batch = begin(small, entry, 3)
    lacking(monkeypatch, small, entry, "predict", lambda images: batch[1] in images)
    outcomes = small.step(entry, batch)
    assert [outcomes[0], outcomes[2]] == [None, None]
    assert isinstance(outcomes[1], ImageTooLarge)
    assert [image.evaluation for image in batch] == [1, 0, 1]
    assert outcomes[1].__traceback__ is None and outcomes[1].__context__ is None, "either would keep tensors alive"


CASES = [
    (model, sampler)
    for model, prediction in (("tiny-sdxl", Prediction.DIFFUSION), ("tiny-sd3", Prediction.FLOW))
    for sampler in samplers_for(prediction)
]


def fail_at_the_last_word(
    monkeypatch: pytest.MonkeyPatch, image: Denoising, fails: Callable[[], bool], error: type[Exception]
) -> None:
    """Have an image's sampler do some of its steps but for their last word, and raise."""
    step = image.sampler.__class__.step

    @wraps(step)
    def failing(scheduler: Any, *args: Any, **keywords: Any) -> Any:
        stepped = step(scheduler, *args, **keywords)
        if fails():
            raise error("planted")
        return stepped

    monkeypatch.setattr(image.sampler.__class__, "step", failing)


@pytest.mark.parametrize(("model", "sampler"), CASES)
def test_a_failing_sampler_leaves_its_image_as_it_was(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, catalog: Catalog, model: str, sampler: str
) -> None:
    """Each of its steps is done but for its last word, fails, and is taken again."""
    entry = catalog.resolve(model)
    engine.load(entry)
    expected, image = (begin(engine, entry, 1, sampler=sampler)[0] for _ in range(2))
    run(engine, entry, [expected])
    failed: list[int] = []

    def first_time() -> bool:
        if image.evaluation in failed:
            return False
        failed.append(image.evaluation)
        return True

    fail_at_the_last_word(monkeypatch, image, first_time, ValueError)
    while not image.finished:
        before = image.latents
        assert isinstance(engine.step(entry, [image])[0], ImageFailed)
        assert image.latents is before
        assert engine.step(entry, [image]) == [None]
    assert failed == list(range(expected.evaluations))
    assert torch.equal(image.latents, expected.latents)


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE", "DPM++ 2M SDE"])
def test_a_sampler_that_lacks_memory_draws_the_same_noise_again(
    monkeypatch: pytest.MonkeyPatch, small: Engine, catalog: Catalog, sampler: str
) -> None:
    entry = catalog.resolve("tiny-sdxl")
    small.load(entry)
    expected, image = (begin(small, entry, 1, sampler=sampler)[0] for _ in range(2))
    run(small, entry, [expected])
    calls: list[int] = []

    def every_other() -> bool:
        calls.append(image.evaluation)
        return len(calls) % 2 == 1

    fail_at_the_last_word(monkeypatch, image, every_other, torch.OutOfMemoryError)
    run(small, entry, [image])
    assert len(calls) == 2 * expected.evaluations
    assert torch.equal(image.latents, expected.latents)
