"""The playground's history: listing, looking at and deleting images."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fake_server import GENERATIONS, FakeServer, serving

HISTORY = "/api/images/history"


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with serving(tmp_path_factory.mktemp("history")) as running:
        for number in range(5):
            body = {"prompt": f"hat {number}", "seed": number, "negative_prompt": "shoes", "steps": 3}
            body |= {"session_id": "even" if number % 2 == 0 else "odd"}
            assert httpx.post(running.url + GENERATIONS, json=body).status_code == 200
        yield running


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_history_is_newest_first_in_pages(fake: FakeServer, slash: str) -> None:
    page = httpx.get(f"{fake.url}{HISTORY}{slash}?page=2&perPage=2").json()
    assert [image["prompt"] for image in page["images"]] == ["hat 2", "hat 1"]
    assert {key: page[key] for key in ("total", "page", "perPage")} == {"total": 5, "page": 2, "perPage": 2}
    assert httpx.get(f"{fake.url}{HISTORY}{slash}?page=99").json()["images"] == []


def test_a_session_holds_its_own_pictures_only(fake: FakeServer) -> None:
    page = httpx.get(f"{fake.url}{HISTORY}?session_id=odd").json()
    assert [image["prompt"] for image in page["images"]] == ["hat 3", "hat 1"] and page["total"] == 2
    assert httpx.get(f"{fake.url}{HISTORY}?session_id=none").json()["total"] == 0
    jobs = httpx.get(f"{fake.url}/api/v1/jobs?session_id=even").json()["data"]
    assert {job["prompt"] for job in jobs["jobs"]} == {"hat 0", "hat 2", "hat 4"}


def test_an_image_tells_all_that_made_it(fake: FakeServer) -> None:
    listed = httpx.get(f"{fake.url}{HISTORY}/").json()["images"][0]
    image = httpx.get(f"{fake.url}/api/images/{listed['id']}/").json()
    assert image == listed == httpx.get(f"{fake.url}/api/images/{listed['id']}").json()
    assert (image["prompt"], image["negativePrompt"], image["modelUsed"], image["model"]) == (
        "hat 4", "shoes", "fake", "fake",
    )  # fmt: skip
    assert image["parameters"] | {"seed": 4, "steps": 3, "sampler": "Euler", "cfgScale": 5.0} == image["parameters"]
    assert image["createdAt"].endswith("Z")
    assert (image["width"], image["height"]) == (64, 64)
    assert image["generationTime"] >= 0 and image["cost"] == 0 and image["jobId"]
    for url in (image["imageUrl"], image["thumbnailUrl"]):
        assert httpx.get(fake.url + url).headers["content-type"] == "image/png"


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_deleted_image_is_gone_everywhere_at_once(fake: FakeServer, slash: str) -> None:
    made = httpx.post(fake.url + GENERATIONS, json={"prompt": "gone"}).json()
    etag = httpx.get(fake.url + made["imageUrl"]).headers["etag"]
    path = f"{fake.url}/api/images/{made['id']}{slash}"
    deleted = httpx.delete(path)
    assert (deleted.status_code, deleted.json()) == (200, {"success": True, "data": {"id": made["id"]}})
    for url in (made["imageUrl"], made["thumbnailUrl"]):
        assert httpx.get(fake.url + url, headers={"if-none-match": etag}).status_code == 404
        assert httpx.head(fake.url + url).status_code == 404
    assert httpx.get(path).status_code == httpx.delete(path).status_code == 404
    assert made["id"] not in httpx.get(f"{fake.url}{HISTORY}/").text
    fake.check_consistent()


@pytest.mark.parametrize("name", ["..", "%2e%2e%2f", "%00", "x" * 300, "%F0%9F%8E%A9", "history%20"])
def test_an_id_that_is_none_is_404(fake: FakeServer, name: str) -> None:
    before = sorted(Path(fake.data).rglob("*.png"))
    for method in ("GET", "DELETE"):
        assert httpx.request(method, f"{fake.url}/api/images/{name}/x/..").status_code in (404, 405)
        assert httpx.request(method, f"{fake.url}/api/images/id-{name}").status_code == 404
    assert sorted(Path(fake.data).rglob("*.png")) == before
