"""A deterministic picture: computed in a batch of its own, and the same bytes whatever came before or runs beside."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch

from pipelines.catalog import Catalog, ModelEntry
from pipelines.denoising import Denoising
from pipelines.device import repeatable
from pipelines.engine import Engine
from pipelines.request import ImageRequest, Wishes, settle
from tests.conftest import Server
from tests.fake_server import GENERATIONS
from tests.test_founding import alone, begin, step


def made(engine: Engine, entry: ModelEntry, request: ImageRequest, *company: ImageRequest) -> Denoising:
    """One request's image, its prompt encoded beside its company's."""
    requests = [request, *company]
    image, *_ = engine.begin(entry, requests, engine.encode(entry, requests))
    assert isinstance(image, Denoising)
    while not image.finished:
        step(engine, entry, [image])
    return image


@pytest.mark.parametrize("model", ["tiny-sdxl", "tiny-sd3", "tiny-sd3-t5"])
def test_a_prompt_that_was_encoded_in_a_crowd_leaves_no_trace(engine: Engine, catalog: Catalog, model: str) -> None:
    entry = catalog.resolve(model)
    prompts = ["a hat", *(f"{number} cats on a long wall in the rain" for number in range(7))]
    crowd = [settle(Wishes(prompt, steps=3), entry, 1) for prompt in prompts]
    lone = replace(crowd[0], deterministic=True)
    expected = alone(engine, entry, crowd[0])  # with the cache cleared before it
    engine.family(entry).cache.clear()
    engine.encode(entry, crowd)
    assert torch.equal(made(engine, entry, lone).latents, expected)
    assert torch.equal(made(engine, entry, lone, *crowd[1:]).latents, expected)


def test_only_repeatable_algorithms_compute_it_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, catalog: Catalog
) -> None:
    entry = catalog.resolve("tiny-sdxl")
    engine.load(entry)
    family = engine.family(entry)
    seen: list[bool] = []
    for name in ("network", "decode"):
        plain = getattr(family, name)

        def watched(tensors: Any, plain: Any = plain) -> Any:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return plain(tensors)

        monkeypatch.setattr(family, name, watched)
    family.place()
    for deterministic in (True, False):
        (image,) = begin(engine, entry, [settle(Wishes("a hat", steps=1, deterministic=deterministic), entry, 0)])
        step(engine, entry, [image])
        engine.finish(entry, [image])
    monkeypatch.undo()
    family.place()
    assert seen == [True, True, False, False]


def test_a_failure_leaves_the_others_their_algorithms() -> None:
    with pytest.raises(ValueError, match="planted"), repeatable(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
        raise ValueError("planted")
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_same_bytes_twice_among_others_over_http(server: Server) -> None:
    def generate(**fields: Any) -> dict[str, Any]:
        answer = httpx.post(server.url + GENERATIONS, json={"prompt": "a lone hat", "steps": 3} | fields, timeout=60)
        assert answer.status_code == 200, answer.text
        facts: dict[str, Any] = answer.json()
        return facts

    with ThreadPoolExecutor(8) as clients:
        others = [clients.submit(generate, seed=seed, prompt=f"a crowd of {seed}") for seed in range(4)]
        twice = [clients.submit(generate, seed=5, deterministic=True, skipGuidance=0.34) for _ in range(2)]
        more = [clients.submit(generate, seed=5) for _ in range(2)]
        first, second = (future.result() for future in twice)
        for future in (*others, *more):
            future.result()
    files = [httpx.get(server.url + facts["imageUrl"]).content for facts in (first, second)]
    assert files[0] == files[1]
    assert first["parameters"] | {"deterministic": True, "skip_guidance": 0.34} == first["parameters"]
