"""Owns the tests of the demo's data: drawing, captions, the held-out split, the tokenizer, the training path."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(autouse=True, scope="module")
def scripts_on_path() -> Iterator[None]:
    """The scripts are no installed package: they import their own folder."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def test_the_same_scene_draws_the_same_pixels() -> None:
    from demo_training.landscapes import render
    from demo_training.scenes import Combination, Extra, Land, Scene, Time

    combination = Combination(Time.DUSK, Land.SEA, frozenset({Extra.BOAT, Extra.STARS, Extra.BIRDS}))
    first = np.asarray(render(Scene(combination, 128, 96, seed=3)))
    again = np.asarray(render(Scene(combination, 128, 96, seed=3)))
    other = np.asarray(render(Scene(combination, 128, 96, seed=4)))
    assert first.shape == (96, 128, 3)
    assert (first == again).all()
    assert (first != other).any()


def test_another_process_draws_the_same_pixels() -> None:
    program = (
        "from demo_training.pictures import render_all, sample_scenes; import hashlib; "
        "print(hashlib.sha256(render_all(sample_scenes(20, 0, (64, 64))).tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            cwd=SCRIPTS,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_every_extra_changes_the_picture() -> None:
    from demo_training.landscapes import render
    from demo_training.scenes import Combination, Scene, all_combinations, allowed_extras

    bare = {(c.time, c.land) for c in all_combinations() if not c.extras}
    assert len(bare) == 24
    for time, land in sorted(bare):
        without = np.asarray(render(Scene(Combination(time, land, frozenset()), 64, 64, seed=0)), float)
        for extra in allowed_extras(time, land):
            shown = np.asarray(render(Scene(Combination(time, land, frozenset({extra})), 64, 64, seed=0)), float)
            assert np.abs(shown - without).max() > 20, (time, land, extra)


def test_held_out_combinations_are_never_sampled_for_training() -> None:
    from demo_training.scenes import SceneSampler, all_combinations

    held_out = [c for c in all_combinations() if c.held_out]
    assert 0.05 < len(held_out) / len(all_combinations()) < 0.25
    assert all(c.extras for c in held_out)
    rng = random.Random(0)
    training, evaluation = SceneSampler(held_out=False), SceneSampler(held_out=True)
    assert not any(training.sample(rng).held_out for _ in range(2000))
    assert all(evaluation.sample(rng).held_out for _ in range(500))


def test_complete_captions_name_what_the_scene_shows() -> None:
    from demo_training.captions import BEFORE_LAND, BEFORE_TIME, EXTRA_WORDS, SUN_WORDS, caption
    from demo_training.scenes import Extra, SceneSampler

    sampler, rng = SceneSampler(held_out=False), random.Random(1)
    for _ in range(500):
        combination = sampler.sample(rng)
        text = caption(combination, rng, complete=True)
        for extra in combination.extras:
            words = [*EXTRA_WORDS[extra], *BEFORE_TIME.get(extra, ()), "palm"]
            words += SUN_WORDS.get(combination.time, ()) if extra is Extra.SUN else ()
            words += BEFORE_LAND if extra is Extra.SNOW else ()
            assert any(word in text for word in words), (text, extra)


def test_captions_are_many_and_repeatable() -> None:
    from demo_training.captions import caption
    from demo_training.scenes import Combination, Extra, Land, Time

    combination = Combination(Time.DUSK, Land.MOUNTAINS, frozenset({Extra.SUN, Extra.CLOUDS}))
    texts = [caption(combination, random.Random(seed)) for seed in range(200)]
    assert texts == [caption(combination, random.Random(seed)) for seed in range(200)]
    assert len(set(texts)) > 150


def test_known_words_are_one_token_and_others_fall_back_to_bytes(tmp_path: Path) -> None:
    from demo_training.captions import known_words
    from demo_training.tokens import LENGTH, encode, new_tokenizer
    from transformers import CLIPTokenizer

    new_tokenizer().save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == LENGTH
    assert [word for word in known_words() if len(loaded(word)["input_ids"]) != 3] == []
    texts = ["A beautiful Sunset over mountains, 4k", "ein Drache über 日本 🎉", "", "hills " * 200]
    assert (encode(loaded, texts) == encode(new_tokenizer(), texts)).all()
    numbers = loaded("ein drache über 日本 🎉")["input_ids"]
    assert loaded.decode(numbers, skip_special_tokens=True).strip() == "ein drache über 日本 🎉"
    assert loaded.unk_token_id not in numbers[1:-1]


def test_the_whole_training_path_gives_checkpoints_in_diffusers_layout(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        str(SCRIPTS / "train_demo.py"),
        "all",
        "--smoke",
        "--threads",
        "1",
        "--work",
        str(tmp_path / "work"),
    ]
    subprocess.run([*command, "--out", str(out)], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    for name in ("demo-sdxl", "demo-sd3"):
        assert json.loads((out / name / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
        files = [path for path in (out / name).rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".json", ".safetensors"}
        assert sum(path.stat().st_size for path in files) < 12_000_000


def test_cutting_the_padding_keeps_every_caption_and_its_end() -> None:
    from demo_training.tokens import encode, new_tokenizer, without_padding

    tokenizer = new_tokenizer()
    numbers = encode(tokenizer, ["hills", "a beautiful sunset over mountains with birds and clouds", ""])
    cut = without_padding(numbers, tokenizer)
    assert cut.shape == (3, 16)
    assert (cut == numbers[:, :16]).all()
    assert (cut[:, -1] == tokenizer.eos_token_id).all()
    assert without_padding(encode(tokenizer, ["hills " * 200]), tokenizer).shape == (1, 77)
