"""Pictures as files: conditions, ranges, other spellings of a name, and files that are not what they were."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_server import GENERATIONS, FakeServer, eventually, serving


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with serving(tmp_path_factory.mktemp("media")) as running:
        yield running


def make(fake: FakeServer, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = httpx.post(fake.url + GENERATIONS, json={"prompt": "a hat"} | fields).json()
    return made


@pytest.fixture(scope="module")
def picture(fake: FakeServer) -> tuple[str, bytes, str]:
    """Its address, bytes and ETag."""
    url = fake.url + make(fake)["imageUrl"]
    answer = httpx.get(url)
    return url, answer.content, answer.headers["etag"]


def file_of(fake: FakeServer, url: str) -> Path:
    return fake.data / url.lstrip("/")


def test_a_picture_has_a_strong_tag_and_may_be_kept_for_ever(picture: tuple[str, bytes, str]) -> None:
    answer = httpx.get(picture[0])
    assert answer.status_code == 200
    assert answer.headers["etag"].startswith('"') and len(answer.headers["etag"]) == 66
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["accept-ranges"] == "bytes"


def test_head_has_the_headers_and_no_body(picture: tuple[str, bytes, str]) -> None:
    url, content, etag = picture
    answer = httpx.head(url, headers={"range": "bytes=0-1"})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (200, b"", etag)
    assert int(answer.headers["content-length"]) == len(content)


@pytest.mark.parametrize("shape", ["{}", "W/{}", '"other", {}', '"other",W/{} , "more"', "*"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_tag_that_matches_is_304(picture: tuple[str, bytes, str], shape: str, method: str) -> None:
    url, _, etag = picture
    answer = httpx.request(method, url, headers={"if-none-match": shape.format(etag), "range": "bytes=0-1"})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("tags", ['"other"', "", "other, more"])
def test_a_tag_that_does_not_match_is_200(picture: tuple[str, bytes, str], tags: str) -> None:
    assert httpx.get(picture[0], headers={"if-none-match": tags}).status_code == 200


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [("bytes=0-0", 0, 1), ("bytes=5-", 5, None), ("bytes=-1", -1, None), ("bytes=3-9", 3, 10),
     ("bytes=3-999999", 3, None), ("bytes=-999999", 0, None), ("Bytes=1-2", 1, 3)],
)  # fmt: skip
def test_a_single_range(picture: tuple[str, bytes, str], header: str, start: int, stop: int | None) -> None:
    url, content, etag = picture
    answer = httpx.get(url, headers={"range": header, "if-range": etag})
    assert (answer.status_code, answer.content) == (206, content[start:stop])
    first = start % len(content)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(content)}"
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize("header", ["bytes=999999-", "bytes=999999-1000000", "bytes=-0"])
def test_a_range_beyond_the_end_is_416(picture: tuple[str, bytes, str], header: str) -> None:
    answer = httpx.get(picture[0], headers={"range": header})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(picture[1])}")


@pytest.mark.parametrize(
    "headers",
    [{"range": "bytes=0-1,3-4"}, {"range": "bytes=9-3"}, {"range": "bytes=-"}, {"range": "pages=1-2"},
     {"range": "bytes=" + "9" * 400 + "-"}, {"range": "bytes=0-1", "if-range": '"other"'},
     {"range": "bytes=0-1", "if-range": "Sat, 21 Nov 2026 10:00:00 GMT"}],
)  # fmt: skip
def test_what_is_no_single_range_is_the_whole(picture: tuple[str, bytes, str], headers: dict[str, str]) -> None:
    answer = httpx.get(picture[0], headers=headers)
    assert (answer.status_code, answer.content) == (200, picture[1])


def test_a_weak_tag_never_joins_ranges(picture: tuple[str, bytes, str]) -> None:
    answer = httpx.get(picture[0], headers={"range": "bytes=0-1", "if-range": f"W/{picture[2]}"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("old", "new"),
    [("/2", "/1"), (".png", ".webp"), (".png", ".PNG"), (".png", ""), (".png", ".png.png"),
     ("/generated_images/", "/x/"), ("/generated_images/", "/tmp/"), ("/generated_images/", "/..%2f"),
     (".png", ".png%00")],
)  # fmt: skip
def test_only_the_one_spelling_of_a_name_is_served(picture: tuple[str, bytes, str], old: str, new: str) -> None:
    assert httpx.get(picture[0].replace(old, new, 1)).status_code == 404


def test_another_month_that_has_a_file_of_that_name_is_404(fake: FakeServer, picture: tuple[str, bytes, str]) -> None:
    path = picture[0].removeprefix(fake.url)
    elsewhere = "/media/generated_images/2001/02/" + path.rsplit("/", 1)[1]
    file_of(fake, elsewhere).parent.mkdir(parents=True)
    file_of(fake, elsewhere).write_bytes(picture[1])
    assert httpx.get(fake.url + elsewhere).status_code == 404
    file_of(fake, elsewhere).unlink()


def test_a_thumbnail_has_a_tag_of_its_own(fake: FakeServer) -> None:
    made = make(fake)
    tags = {httpx.get(fake.url + made[key]).headers["etag"] for key in ("imageUrl", "thumbnailUrl")}
    assert len(tags) == 2


@pytest.mark.parametrize(("format", "suffix"), [("png", "png"), ("jpeg", "jpeg"), ("webp", "webp")])
def test_the_type_is_the_file_s(fake: FakeServer, format: str, suffix: str) -> None:
    made = make(fake, output_format=format)
    assert made["imageUrl"].endswith("." + suffix)
    assert httpx.get(fake.url + made["imageUrl"]).headers["content-type"] == f"image/{format}"


@pytest.mark.parametrize("damage", ["missing", "shorter", "longer", "link", "empty thumbnail"])
def test_a_file_that_is_not_what_was_written_is_404_and_logged(
    fake: FakeServer, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = make(fake)
    url = made["thumbnailUrl" if "thumbnail" in damage else "imageUrl"]
    file = file_of(fake, url)
    content = file.read_bytes()
    if damage in ("missing", "link"):
        file.unlink()
    if damage == "link":
        (fake.data / "elsewhere.png").write_bytes(content)
        file.symlink_to(fake.data / "elsewhere.png")
        assert httpx.get(fake.url + url).status_code == 404
        file.unlink()
    elif damage != "missing":
        file.write_bytes({"shorter": content[:-1], "longer": content + b"x"}.get(damage, b""))
    for method in ("GET", "HEAD"):
        assert httpx.request(method, fake.url + url).status_code == 404
    assert file.name in caplog.text


def pictures_open() -> int:
    """How many files below a media folder this process holds open."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(os.readlink(descriptor))
    return sum(link.endswith(".png") for link in links)


def test_downloads_broken_off_leave_no_file_open(fake: FakeServer) -> None:
    made = make(fake, width=128, height=128)
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", fake.port)) as connection:
            connection.sendall(f"GET {made['imageUrl']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert httpx.get(fake.url + made["imageUrl"]).status_code == 200
    eventually(lambda: pictures_open() == 0)
