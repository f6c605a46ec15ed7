"""Infotext: AUTOMATIC1111's lines, in its order and with its quoting, and everything else as JSON beside them."""

import json
from dataclasses import asdict, replace

import pytest

from pipelines.catalog import Catalog
from pipelines.infotext import _SCHEDULE_LABELS, infotext, metadata
from pipelines.request import ImageRequest
from pipelines.samplers import SCHEDULES

REQUEST = ImageRequest("demo", "a boat", None, 512, 768, 20, 7.0, "Euler a", "karras", 1)
SETTINGS = "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, Model: demo"


def test_the_settings_stand_in_automatic1111s_order() -> None:
    assert infotext(REQUEST) == f"a boat\n{SETTINGS}"


def test_the_negative_prompt_has_a_line_of_its_own_where_there_is_one() -> None:
    assert infotext(replace(REQUEST, negative_prompt="fog")) == f"a boat\nNegative prompt: fog\n{SETTINGS}"
    assert infotext(replace(REQUEST, negative_prompt="")) == f"a boat\n{SETTINGS}"


@pytest.mark.parametrize(
    "prompt", ["a hat, red: <lora:name:0.8>", "a\nb\n\nc", 'say "hi" 帽子 🎩 \u202eabc', "<script>"]
)
def test_prompts_are_written_as_they_are(prompt: str) -> None:
    text = infotext(replace(REQUEST, prompt=prompt, negative_prompt=prompt))
    assert text == f"{prompt}\nNegative prompt: {prompt}\n{SETTINGS}"


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\nb", 'a"b', 'ü,"\n'])
def test_values_with_marks_of_the_format_are_json_quoted(name: str) -> None:
    last = infotext(replace(REQUEST, model=name)).splitlines()[-1]
    quoted = last.partition("Model: ")[2]
    assert json.loads(quoted) == name
    assert "ü" not in name or "ü" in quoted


def test_ten_digits_of_the_models_hash_stand_before_its_name_and_all_of_them_in_the_json(catalog: Catalog) -> None:
    digits = "0123456789abcdef" * 4
    texts = metadata(REQUEST, catalog.resolve("tiny-sdxl"), digits)
    assert texts["parameters"].endswith(", Size: 512x768, Model hash: 0123456789, Model: demo")
    assert json.loads(texts["darkroom"])["model_hash"] == digits


@pytest.mark.parametrize(("scale", "written"), [(7.0, "7"), (4.5, "4.5"), (0.1 + 0.2, "0.30000000000000004"), (0, "0")])
def test_the_guidance_scale_keeps_every_digit(scale: float, written: str) -> None:
    assert f"CFG scale: {written}, " in infotext(replace(REQUEST, guidance_scale=scale))


def test_clip_skip_counts_from_the_last_layer() -> None:
    assert infotext(replace(REQUEST, clip_skip=1)).endswith("Model: demo, Clip skip: 3")
    assert "Clip skip" not in infotext(REQUEST)


def test_every_schedule_has_a_label() -> None:
    assert _SCHEDULE_LABELS.keys() == SCHEDULES.keys()


def test_the_metadata_holds_the_whole_request(catalog: Catalog) -> None:
    request = replace(REQUEST, prompt="帽子\n🎩", negative_prompt="霧")
    texts = metadata(request, catalog.resolve("tiny-sd3"))
    assert texts.keys() == {"parameters", "darkroom"}
    assert texts["parameters"] == infotext(request)
    everything = json.loads(texts["darkroom"])
    assert (everything.pop("family"), everything.pop("model_hash")) == ("sd3", None)
    assert ImageRequest(**everything) == request
    assert everything == asdict(request)
    assert "帽子" in texts["darkroom"]
