"""Requests: defaults, the bounds of every field, sizes in all their spellings, errors that name what was written."""

from dataclasses import replace
from typing import Any

import pytest

from pipelines.catalog import ModelEntry
from pipelines.errors import InvalidRequest
from pipelines.families import family_facts
from pipelines.levers import Preset, Speed
from pipelines.models_toml import load_catalog
from pipelines.quality import with_quality
from pipelines.request import (
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    BatchKey,
    ImageRequest,
    Wishes,
    check_range,
    settle,
    settle_size,
)
from pipelines.samplers import samplers_for
from pipelines.sizes import parse_size, size_of_ratio

MODELS = """
[models.xl]
family = "sdxl"
source = "./xl"
sampler = "DPM++ 2M"
schedule = "karras"
[models.sd3]
family = "sd3"
source = "./sd3"
[models.tight]
family = "sdxl"
source = "./xl"
size = "520x520"
max_side = 800
max_pixels = 270400
"""


ENTRIES: dict[str, ModelEntry] = {}


@pytest.fixture(scope="module", autouse=True)
def entries(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("models") / "models.toml"
    file.write_text(MODELS)
    ENTRIES.update(load_catalog(file, family_facts()).entries)


def entry(name: str = "xl") -> ModelEntry:
    return ENTRIES[name]


def refused(**wishes: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        settle(Wishes(**{"prompt": "a hat"} | wishes), entry(), seed=wishes.pop("seed", 0))
    return caught.value


def test_what_a_client_leaves_out_is_the_models() -> None:
    assert settle(Wishes("a hat"), entry(), seed=3) == ImageRequest(
        model="xl",
        prompt="a hat",
        negative_prompt=None,
        width=1024,
        height=1024,
        steps=30,
        guidance_scale=5.0,
        sampler="DPM++ 2M",
        schedule="karras",
        seed=3,
        clip_skip=None,
    )


def test_what_a_client_says_wins() -> None:
    wishes = Wishes("a hat", "fog", 512, 768, 7, 2, "euler", "Beta", 2)
    request = settle(wishes, entry(), seed=MAX_SEED)
    assert (request.width, request.height, request.steps, request.guidance_scale) == (512, 768, 7, 2.0)
    assert (request.sampler, request.schedule, request.clip_skip, request.negative_prompt) == (
        "Euler",
        "beta",
        2,
        "fog",
    )


def test_another_sampler_starts_from_its_own_schedule_and_the_models_own_keeps_the_models() -> None:
    assert settle(Wishes("a hat", sampler="Euler a"), entry(), 0).schedule == "automatic"
    assert settle(Wishes("a hat", schedule="beta"), entry(), 0).sampler == "DPM++ 2M"


@pytest.mark.parametrize(("field", "low", "high"), [("steps", 1, 150), ("guidance_scale", 0, 50), ("clip_skip", 0, 11)])
def test_numbers_have_bounds(field: str, low: int, high: int) -> None:
    for value in (low, high):
        assert getattr(settle(Wishes("a hat", **{field: value}), entry(), 0), field) == value
    for value in (low - 1, high + 1, -(2**63), 2**63, 10**5000):
        error = refused(**{field: value})
        assert error.field == field
        assert str(low) in str(error) and str(high) in str(error)
        assert len(str(error)) < 200


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -0.001, 50.001])
def test_a_guidance_scale_that_is_no_number_is_refused(value: float) -> None:
    assert refused(guidance_scale=value).field == "guidance_scale"


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 10**400])
def test_seeds_have_bounds(seed: int) -> None:
    with pytest.raises(InvalidRequest, match=f"seed must be between 0 and {MAX_SEED}"):
        settle(Wishes("a hat"), entry(), seed)


def test_prompts_have_bounds() -> None:
    assert refused(prompt="").field == refused(prompt=" \n\t").field == "prompt"
    for field in ("prompt", "negative_prompt"):
        assert settle(Wishes(**{"prompt": "a", field: "x" * MAX_PROMPT_CHARACTERS}), entry(), 0)
        error = refused(**{field: "x" * (MAX_PROMPT_CHARACTERS + 1)})
        assert (error.field, "32000" in str(error)) == (field, True)


@pytest.mark.parametrize(
    ("width", "height", "field"),
    [
        (513, 512, "size"),
        (512, 513, "size"),
        (513, None, "width"),
        (None, 513, "height"),
        (0, 0, "size"),
        (0, None, "width"),
        (None, -8, "height"),
        (10**4000, None, "width"),
        (8, 8192, "size"),
        (4096, 2048, "size"),
        (None, 4104, "height"),
        (4096 + 8, None, "width"),
    ],
)
def test_a_bad_size_is_named_as_the_client_wrote_it(width: int | None, height: int | None, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        settle_size(width, height, entry())
    assert caught.value.field == field
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(("width", "height"), [(4096, 2048), (1023, None), (4104, None), (0, 0), (-8, 8)])
def test_an_impossible_size_is_told_the_whole_rule_and_sizes_that_work(width: int, height: int | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        settle_size(width, height, entry())
    assert str(caught.value) == (
        f"size {width}x{height if height is not None else 1024}: with 'xl' each side must be a multiple of 8 from 8 to"
        f" 4096, and width x height at most 4194304. Its native sizes: {', '.join(entry().native_sizes)}."
    )
    for written in entry().native_sizes:
        assert settle_size(*parse_size(written), entry())


def test_the_bounds_of_a_size_are_the_models_own() -> None:
    with pytest.raises(InvalidRequest) as caught:
        settle_size(None, 528, entry("tight"))
    assert caught.value.field == "height"
    with pytest.raises(InvalidRequest, match="multiple of 16 from 16"):
        settle_size(1032 - 7, None, entry("sd3"))
    assert settle_size(None, 512, entry()) == (1024, 512)
    assert settle_size(4096, 1024, entry()) == (4096, 1024)


@pytest.mark.parametrize("written", ["512x768", " 512 x 768 ", "512X768", "512×768"])
def test_sizes_are_read(written: str) -> None:
    assert parse_size(written) == (512, 768)


@pytest.mark.parametrize("written", ["auto", "AUTO "])
def test_auto_is_no_size(written: str) -> None:
    assert parse_size(written) == (None, None)


@pytest.mark.parametrize("written", ["", "512", "512x", "x512", "axb", "-1x5", "1e3x5", "512x768x3", "9" * 9000 + "x1"])
def test_what_is_no_size_is_refused(written: str) -> None:
    with pytest.raises(InvalidRequest, match='"WIDTHxHEIGHT"') as caught:
        parse_size(written)
    assert caught.value.field == "size"
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1:1", (1024, 1024)),
        ("16:9", (1344, 768)),
        ("9/16", (768, 1344)),
        ("2:1", (1448, 724 + 4)),
        ("1.5:1", (1216, 832)),
    ],
)
def test_aspect_ratios_take_a_native_size_or_as_many_pixels(written: str, size: tuple[int, int]) -> None:
    assert size_of_ratio(written, entry()) == size


@pytest.mark.parametrize("written", ["", "1", "0:1", "1:0", "9:1", "1:9", "-1:1", "a:b", "inf:1", "nan:1", "1:1:1"])
def test_what_is_no_ratio_is_refused(written: str) -> None:
    with pytest.raises(InvalidRequest, match="from 1:8 to 8:1") as caught:
        size_of_ratio(written, entry())
    assert caught.value.field == "aspect_ratio"


@pytest.mark.parametrize("name", ["xl", "sd3", "tight"])
def test_every_ratio_gives_a_size_the_model_makes(name: str) -> None:
    for width in range(1, 9):
        for height in range(1, 9):
            size = size_of_ratio(f"{width}:{height}", entry(name))
            assert settle_size(*size, entry(name)) == size


@pytest.mark.parametrize(
    ("written", "word", "steps"),
    [
        (None, "medium", 30),
        ("auto", "medium", 30),
        ("standard", "medium", 30),
        ("low", "low", 15),
        ("draft", "low", 15),
        ("hd", "high", 45),
        ("HIGH", "high", 45),
        ("xhigh", "xhigh", 60),
        ("max", "max", 75),
        ("excellent", "medium", 30),
    ],
)
def test_quality_words_are_steps(written: str | None, word: str, steps: int) -> None:
    assert with_quality(written, Wishes("a hat"), entry()) == (word, Wishes("a hat", steps=steps))


def test_quality_never_asks_for_more_than_may_be_had() -> None:
    assert with_quality("max", Wishes("a hat"), replace(entry(), steps=150))[1].steps == 150
    assert with_quality("low", Wishes("a hat"), replace(entry(), steps=1))[1].steps == 1
    for sampler in samplers_for(entry().prediction):
        wishes = with_quality("max", Wishes("a hat", sampler=sampler), entry())[1]
        assert settle(wishes, entry(), 0).steps == wishes.steps


DRAFT = Preset("draft", steps=60, guidance_scale=2.0, sampler="LCM", skip_guidance=0.25)
LOW = Preset("low", sampler="DPM++ 2M", schedule="karras")


def test_a_models_own_table_says_what_a_word_stands_for() -> None:
    model = replace(entry(), quality=(DRAFT, LOW))
    word, wishes = with_quality("Draft", Wishes("a hat"), model)
    assert word == "low", "the answer's word is one of OpenAI's"
    # 50 steps are the most that LCM takes.
    assert wishes == Wishes("a hat", steps=50, guidance_scale=2.0, sampler="LCM", skip_guidance=0.25)
    assert with_quality("low", Wishes("a hat"), model)[1] == Wishes(
        "a hat", steps=15, sampler="DPM++ 2M", schedule="karras"
    )
    assert with_quality("draft", Wishes("a hat"), replace(entry(), quality=(LOW,)))[1].sampler == "DPM++ 2M"
    assert with_quality("high", Wishes("a hat"), model)[1] == Wishes("a hat", steps=45)


def test_what_a_client_says_itself_wins_over_its_quality_word() -> None:
    model = replace(entry(), quality=(DRAFT, LOW))
    own = Wishes("a hat", steps=9, guidance_scale=7.0, sampler="Euler", skip_guidance=0.0)
    assert with_quality("draft", own, model)[1] == own
    # Sampler and schedule are chosen as a pair: with LCM the client's karras would be an error.
    assert with_quality("draft", Wishes("a hat", steps=9, schedule="karras"), model)[1].sampler is None


def test_the_share_without_guidance_is_the_requests_or_the_models() -> None:
    model = replace(entry(), speed=Speed(skip_guidance=0.2))
    assert settle(Wishes("a hat"), model, 0).guided_steps == 24
    assert settle(Wishes("a hat", skip_guidance=0.5), model, 0).guided_steps == 15
    unguided = settle(Wishes("a hat", skip_guidance=1), model, 0)
    assert (unguided.guided_steps, unguided.rows) == (0, 1)
    assert settle(Wishes("a hat", skip_guidance=0), model, 0).guided_steps == 30
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InvalidRequest, match="skip_guidance must be between 0 and 1"):
            settle(Wishes("a hat", skip_guidance=wrong), model, 0)


def test_a_deterministic_image_shares_its_batch_with_nobody() -> None:
    requests = [settle(Wishes("a hat", deterministic=alone), entry(), 0) for alone in (True, True, False)]
    keys = [BatchKey.of(entry(), request, number) for number, request in enumerate(requests)]
    assert len(set(keys)) == 3
    assert {key.shared for key in keys} == {BatchKey.of(entry(), requests[2], 7)}


def test_rows_and_the_batch_key_follow_from_the_request() -> None:
    request = settle(Wishes("a hat", guidance_scale=1), entry(), 0)
    assert (request.guided, request.rows) == (False, 1)
    guided = settle(Wishes("a cat", guidance_scale=1.01, steps=3, sampler="euler"), entry(), 9)
    assert (guided.guided, guided.rows) == (True, 2)
    keys = [BatchKey.of(entry(), one) for one in (guided, request, settle(Wishes("a hat", width=512), entry(), 0))]
    assert keys[0] == keys[1] != keys[2]


def test_a_range_is_closed() -> None:
    check_range("n", 1, 1, 10)
    check_range("n", 10, 1, 10)
    with pytest.raises(InvalidRequest, match="n must be between 1 and 10, not 11"):
        check_range("n", 11, 1, 10)
