"""OpenAI's own Python client against the real server: results, typed exceptions, retries, and a crowd at once."""

import asyncio
import hashlib
import io
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from pipelines.errors import NotANumber
from tests.conftest import Server
from tests.fake_server import FakeServer, calling, eventually, serving

PIXEL_TOLERANCE = 2
"""Of 255: kernels add in another order in another batch, and a value may round the other way."""


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url + "/v1", api_key="anything") as made:
        yield made


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeServer]:
    with serving(tmp_path, queue_limit=2) as running:
        yield running


class Counting(httpx.HTTPTransport):
    """Counts the requests that a client really sends."""

    sent = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent += 1
        return super().handle_request(request)


def test_a_picture_by_url_and_inline(client: OpenAI) -> None:
    by_url = client.images.generate(prompt="a hat", size="32x32", extra_body={"seed": 3, "steps": 2})  # type: ignore[call-overload]
    assert by_url.data and by_url.data[0].url
    inline = client.images.generate(
        model="gpt-image-1", prompt="a hat", n=1, quality="low", output_format="png", user="ada", extra_body={"seed": 3}
    )
    assert inline.data and inline.data[0].b64_json
    assert b64decode(inline.data[0].b64_json) == httpx.get(by_url.data[0].url).content, "2 steps are quality low"
    assert inline.usage and inline.usage.input_tokens == inline.usage.input_tokens_details.text_tokens > 0
    assert (inline.quality, inline.output_format, inline.size) == ("low", "png", "32x32")


def test_models(client: OpenAI) -> None:
    assert "tiny-sd3" in [model.id for model in client.models.list()]
    assert client.models.retrieve("org/tiny").id == "tiny-sdxl"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nope")
    assert caught.value.code == "model_not_found"


def test_what_is_wrong_is_a_typed_exception(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.images.generate(prompt="a hat", n=11)
    assert (bad.value.param, bad.value.code, bad.value.type) == ("n", "invalid_value", "invalid_request_error")
    assert bad.value.request_id
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt="a hat", model="nope")
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    assert "tiny-sdxl" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.images.generate(prompt="a hat", stream=True)
    assert unsupported.value.param == "stream"


def test_failures_that_stay_are_asked_for_once(fake: FakeServer) -> None:
    fake.engine.failing_seeds[1] = NotANumber("the picture came out as not-a-number.")
    transport = Counting()
    with OpenAI(base_url=fake.url + "/v1", api_key="-", http_client=httpx.Client(transport=transport)) as client:
        with pytest.raises(openai.InternalServerError) as failed:
            client.images.generate(prompt="a hat", extra_body={"seed": 1})
        assert (failed.value.code, transport.sent) == ("generation_failed", 1)
        assert failed.value.type == "server_error"


def test_a_full_queue_is_asked_again(fake: FakeServer) -> None:
    transport = Counting()
    fake.engine.gates["step"].close()
    with (
        calling(fake),
        OpenAI(base_url=fake.url + "/v1", api_key="-", http_client=httpx.Client(transport=transport)) as client,
    ):
        eventually(lambda: fake.queue == 1)
        with pytest.raises(openai.InternalServerError) as full:
            client.images.generate(prompt="a hat", n=2)
        assert (full.value.code, transport.sent) == ("queue_full", 3)


def wishes() -> list[dict[str, Any]]:
    """Fifty requests, no two alike: models, sizes, steps, guidance on and off, samplers, numbers of images."""
    models = ("tiny-sdxl", "tiny-sd3", "tiny-sd3-t5")
    samplers = {"tiny-sdxl": ("Euler a", "DPM++ 2M", "DDIM", "Heun")}
    return [
        {
            "prompt": f"picture {number}",
            "model": models[number % 3],
            "size": ("32x32", "48x32", "32x48")[number % 7 % 3],
            "n": 1 + number % 11 % 2,
            "extra_body": {
                "steps": 2 + number % 5,
                "guidance_scale": (1.0, 3.0, 7.5)[number % 4 % 3],
                "seed": 1000 + number,
                "sampler": samplers.get(models[number % 3], ("Euler",))[number % 4 % (4 if number % 3 == 0 else 1)],
                "negative_prompt": (None, "grey")[number % 2],
            },
        }
        for number in range(50)
    ]


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16)


@pytest.mark.anyio
async def test_fifty_at_once_get_what_each_gets_alone(server: Server) -> None:
    async with AsyncOpenAI(base_url=server.url + "/v1", api_key="-", max_retries=0, timeout=90) as client:

        async def ask(wish: dict[str, Any]) -> list[bytes]:
            answer = await client.images.generate(**wish, response_format="b64_json")
            assert len(answer.data) == wish["n"]
            return [b64decode(item.b64_json) for item in answer.data]

        crowd = await asyncio.gather(*(ask(wish) for wish in wishes()))
        alone = [await ask(wish) for wish in wishes()]
    digests = {hashlib.sha256(picture).hexdigest() for pictures in crowd for picture in pictures}
    assert len(digests) == sum(wish["n"] for wish in wishes()), "no two pictures are the same one"
    for wish, together, single in zip(wishes(), crowd, alone, strict=True):
        for one, other in zip(together, single, strict=True):
            difference = np.abs(pixels(one) - pixels(other)).max()
            assert difference <= PIXEL_TOLERANCE, (wish, difference)
