"""What is refused, how it is said in each dialect, and that nothing of the machine is told."""

import asyncio
import json
import logging
import socket
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.answers import ANSWERS
from server.generation_body import ALIASES, LATER, GenerationBody
from tests.conftest import Server
from tests.fake_server import GENERATIONS, serving

API = Path(__file__).parent.parent / "docs" / "api.md"


def post(server: Server, content: bytes, **headers: str) -> httpx.Response:
    return httpx.post(
        server.url + GENERATIONS, content=content, headers={"content-type": "application/json"} | headers, timeout=30
    )


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        (b"", "body", "invalid_value"),
        (b"{", "body", "invalid_value"),
        (b"[]", "body", "invalid_value"),
        (b"{}", "prompt", "missing_required_parameter"),
        (b'{"prompt": null}', "prompt", "missing_required_parameter"),
        (b'{"prompt": "  "}', "prompt", "invalid_value"),
        (b'{"prompt": 5}', "prompt", "invalid_value"),
        (b'{"prompt": "\\ud800"}', "body", "invalid_value"),
        (b'{"prompt": "\\udc00 x"}', "body", "invalid_value"),
        (b'{"prompt": "\xff"}', "body", "invalid_value"),
        (b'{"prompt": "a\\u0000b"}', "prompt", "invalid_value"),
        (b'{"prompt": "a", "user": "\\u0000"}', "user", "invalid_value"),
        (b'{"prompt": "a", "\\u0000": 1}', "\0", "unknown_parameter"),
        (b"[" * 2000 + b"]" * 2000, "body", "invalid_value"),
        (b'{"prompt": "a", "seed": ' + b"1" * 400 + b"}", "seed", "invalid_value"),
        (b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", "body", "invalid_value"),
        (b'{"prompt": "a", "width": ' + b"1" * 400 + b"}", "width", "invalid_value"),
        (b'{"prompt": "a", "guidance_scale": 1e999}', "body", "invalid_value"),
        (b'{"prompt": "a", "seed": 9007199254740992}', "seed", "invalid_value"),
        (b'{"prompt": "a", "seed": -2}', "seed", "invalid_value"),
        (b'{"prompt": "a", "n": 0}', "n", "invalid_value"),
        (b'{"prompt": "a", "n": 11}', "n", "invalid_value"),
        (b'{"prompt": "a", "n": true}', "n", "invalid_value"),
        (b'{"prompt": "a", "cfgScale": "x"}', "cfgScale", "invalid_value"),
        (b'{"prompt": "a", "steps": 151}', "steps", "invalid_value"),
        (b'{"prompt": "a", "size": "33x32"}', "size", "invalid_value"),
        (b'{"prompt": "a", "size": "128x128", "model": "gpt-image-1", "width": null, "height": 4096}', "height", None),
        (b'{"prompt": "a", "size": "big"}', "size", "invalid_value"),
        (b'{"prompt": "a", "aspect_ratio": "1:100"}', "aspect_ratio", "invalid_value"),
        (b'{"prompt": "a", "sampler": "no such"}', "sampler", "invalid_value"),
        (b'{"prompt": "a", "response_format": "file"}', "response_format", "invalid_value"),
        (b'{"prompt": "a", "output_format": "gif"}', "output_format", "invalid_value"),
        (b'{"prompt": "a", "output_compression": 101}', "output_compression", "invalid_value"),
        (b'{"prompt": "a", "background": "transparent"}', "background", "invalid_value"),
        (b'{"prompt": "a", "background": "pink"}', "background", "invalid_value"),
        (b'{"prompt": "a", "style": "pixel-art"}', "style", "invalid_value"),
        (b'{"prompt": "a", "cfg_scale": 1, "guidance_scale": 2}', "guidance_scale", "invalid_value"),
        (b'{"prompt": "a", "nope": 1}', "nope", "unknown_parameter"),
        (b'{"prompt": "a", "stream": true}', "stream", "unsupported_parameter"),
        (b'{"prompt": "a", "hiresFix": {"scale": 2}}', "hiresFix", "unsupported_parameter"),
        (b'{"prompt": "' + b"a" * 32_001 + b'"}', "prompt", "invalid_value"),
        (b'{"prompt": "' + b"a" * 31_900 + b'", "negative_prompt": "' + b"b" * 800 + b'", "output_format": "jpeg"}',
         "prompt", "invalid_value"),
        (b'{"prompt": "a", "session_id": "' + b"a" * 257 + b'"}', "session_id", "invalid_value"),
    ],
)  # fmt: skip
def test_a_bad_body_is_a_400_that_names_the_field(server: Server, body: bytes, field: str, code: str | None) -> None:
    answer = post(server, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["type"]) == (field, "invalid_request_error")
    assert error["code"] == (code or "invalid_value")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", 'The body is empty; send a JSON object such as {"prompt": "a boat"}.'),
        (b'{"prompt": 5}', "prompt must be a string, not a whole number."),
        (b'{"prompt": "a", "steps": "x"}', "steps must be a whole number, not a string."),
        (b'{"prompt": "a", "cfgScale": [1]}', "cfgScale must be a number, not an array."),
        (b'{"prompt": "a", "deterministic": 1}', "deterministic must be true or false, not a whole number."),
        (b'{"prompt": "a", "seed": -2}',
         "seed must be between 0 and 9007199254740991, or -1 to have one drawn, not -2."),
        (b'{"prompt": "a", "stepz": 2}', "Unknown field 'stepz'; did you mean 'steps'?"),
        (b'{"prompt": "a", "guidanceScal": 2}', "Unknown field 'guidanceScal'; did you mean 'guidance_scale'?"),
        (b'{"prompt": "a", "model": "Tiny-SDXL"}', "The model 'Tiny-SDXL' does not exist; did you mean 'tiny-sdxl'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_the_words_of_json_with_its_remedy(server: Server, body: bytes, message: str) -> None:
    assert post(server, body).json()["error"]["message"] == message


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("page=x", "page: must be a whole number, not a string."),
        ("page=0", "page: must be a whole number of at least 1."),
    ],
)
def test_a_mistake_in_a_query_is_told_alike(server: Server, query: str, message: str) -> None:
    answer = httpx.get(f"{server.url}/api/images/history?{query}", follow_redirects=True)
    assert answer.json()["error"]["message"] == message


def test_a_refusal_is_one_line_of_the_log_without_what_was_asked(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer = post(server, b'{"prompt": "a secret", "the secret": 1}')
    told = [record for record in caplog.records if answer.headers["x-request-id"] in record.getMessage()]
    assert [(one.levelno, one.getMessage()) for one in told] == [
        (
            logging.INFO,
            f"request {answer.headers['x-request-id']}: POST '{GENERATIONS}' refused: 400 unknown_parameter",
        )
    ]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("later", LATER)
def test_what_comes_later_is_refused_only_when_it_is_asked_for(server: Server, later: str) -> None:
    refused = httpx.post(server.url + GENERATIONS, json={"prompt": "a", "n": 99, later: 1})
    assert refused.json()["error"]["code"] == "unsupported_parameter"
    passed = httpx.post(server.url + GENERATIONS, json={"prompt": "a", "n": 99, later: None})
    assert passed.json()["error"]["param"] == "n", "null is not given"


def test_a_body_too_large_is_413_announced_or_not(server: Server) -> None:
    body = b'{"prompt": "a"}' + b" " * 1024 * 1024
    assert post(server, body).json()["error"]["code"] == "request_too_large"
    headers = {"content-type": "application/json"}
    chunked = httpx.post(server.url + GENERATIONS, content=iter([body[:600_000], body[600_000:]]), headers=headers)
    assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("declared", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_only_json_is_read(server: Server, declared: str) -> None:
    answer = post(server, b'{"prompt": "a"}', **{"content-type": declared})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("host", ["x:abc", "x:99999", "[::1"])
def test_a_host_that_is_none_is_refused(server: Server, host: str) -> None:
    answer = post(server, b'{"prompt": "a", "response_format": "url"}', host=host)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Host")


def test_json_may_declare_its_charset(server: Server) -> None:
    answer = post(server, b"{}", **{"content-type": "Application/JSON; charset=utf-8"})
    assert answer.status_code == 400


def test_a_body_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.body.read_json.__defaults__", (1024, 0.2))
    with serving(tmp_path) as fake, socket.create_connection(("127.0.0.1", fake.port)) as connection:
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += "Content-Length: 9\r\n\r\n{"
        connection.sendall(head.encode())
        connection.settimeout(10)
        answer = HTTPResponse(connection)
        answer.begin()
        error = json.loads(answer.read())["error"]
    assert (answer.status, error["code"]) == (408, "request_timeout")


def test_a_client_that_leaves_within_its_body_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path) as fake:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", fake.port)) as connection:
                head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        assert httpx.get(fake.url + "/health").status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nope", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/v1/images/edits", 404, "not_found"),
        ("GET", GENERATIONS, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/nope", 404, "model_not_found"),
        ("GET", "/v1/models/..%2f..%2fsecret", 404, "model_not_found"),
    ],
)
def test_errors_under_v1_are_openai_s(server: Server, method: str, path: str, status: int, code: str) -> None:
    answer = httpx.request(method, server.url + path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()) == {"error"}
    assert answer.headers["x-request-id"]
    assert (status == 405) == ("allow" in answer.headers)


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "field"),
    [
        ("GET", "/nope", 404, "not_found", None),
        ("GET", "/v1nope", 404, "not_found", None),
        ("PUT", "/health", 405, "method_not_allowed", None),
        ("GET", "/assets/%00", 404, "not_found", None),
        ("GET", "/assets/..%2f..%2fapp.py", 404, "not_found", None),
        ("GET", "/assets/%2e%2e/app.py", 404, "not_found", None),
        ("GET", "/media/a/b/c/%00", 404, "not_found", None),
        ("GET", "/api/images/%ff", 404, "not_found", None),
        ("GET", "/api/images/history/?page=0", 400, "invalid_value", "page"),
        ("GET", "/api/images/history/?page=x", 400, "invalid_value", "page"),
        ("GET", "/api/images/history/?page=" + "9" * 400, 400, "invalid_value", "page"),
        ("GET", "/api/images/history/?perPage=101", 400, "invalid_value", "perPage"),
    ],
)
def test_errors_elsewhere_are_the_application_s(
    server: Server, method: str, path: str, status: int, code: str, field: str | None
) -> None:
    answer = httpx.request(method, server.url + path)
    assert answer.status_code == status
    body = answer.json()
    assert body["success"] is False
    assert (body["error"]["code"], body["error"].get("field")) == (code, field)
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"sec-fetch-site": "same-origin"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "same-site"}, True),
        ({"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1"}, True),
        ({"origin": "http://evil.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": "http://[::1"}, True),
        ({"origin": "http://localhost:80", "host": "localhost:80"}, False),
    ],
)
def test_a_page_of_another_site_may_read_but_not_act(server: Server, headers: dict[str, str], refused: bool) -> None:
    generate = post(server, b"{}", **headers)
    assert (generate.status_code, generate.json()["error"]["code"]) == (
        (403, "cross_site") if refused else (400, "missing_required_parameter")
    )
    deleted = httpx.delete(server.url + "/api/images/nope/", headers=headers)
    assert (deleted.status_code, deleted.json()["error"]["code"]) == (
        (403, "cross_site") if refused else (404, "not_found")
    )
    assert httpx.get(server.url + "/v1/models", headers=headers).status_code == 200


def test_a_missing_checkpoint_tells_the_client_its_name_and_the_log_its_place(
    server: Server, caplog: pytest.LogCaptureFixture, checkpoints: Path
) -> None:
    answer = httpx.post(server.url + GENERATIONS, json={"prompt": "a", "model": "missing"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
    assert answer.headers["x-should-retry"] == "false"
    assert str(checkpoints) not in answer.text + httpx.get(server.url + "/ready").text
    assert str(checkpoints) in caplog.text
    assert any(answer.headers["x-request-id"] in record.getMessage() for record in caplog.records)
    told = [
        record for record in caplog.records if record.levelno >= logging.ERROR and "does not exist" in record.message
    ]
    assert len(told) == 1, "one cause is one error"
    assert "missing" in httpx.get(server.url + "/ready").json()["broken_models"]


def test_every_answer_has_an_id_of_its_own(server: Server) -> None:
    paths = ["/", "/health", "/ready", "/docs", "/v1/models", "/nope", "/media/x", "/api/images/history/"]
    ids = [httpx.get(server.url + path).headers["x-request-id"] for path in paths]
    assert len(set(ids)) == len(paths)


def test_the_docs_page_needs_no_other_host(server: Server) -> None:
    home = httpx.get(server.url + "/")
    assert (home.status_code, home.headers["location"]) == (302, "/docs")
    page = httpx.get(server.url + "/docs")
    assert page.status_code == 200
    outside = page.text.split("spec: ")[0]
    assert "://" not in outside and '"//' not in outside
    assets = [part.split('"')[0] for part in outside.split('="')[1:] if part.startswith("/assets/")]
    assert len(assets) == 3
    for asset in assets:
        assert httpx.get(server.url + asset).status_code == 200


def test_health_and_readiness(server: Server) -> None:
    async def until_ready() -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=server.url) as client:
            while (answer := await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.05)
            body: dict[str, Any] = answer.json()
            return body

    assert httpx.get(server.url + "/health/").json() == {"status": "ok"}
    ready = asyncio.run(asyncio.wait_for(until_ready(), 30))
    assert (ready["status"], ready["missing"]) == ("ready", {})


def test_the_reference_names_every_route_field_and_error_code(server: Server) -> None:
    text = API.read_text()
    routes = [path for path in httpx.get(server.url + "/docs/openapi.json").json()["paths"]]
    codes = [answer.code for answer in ANSWERS.values()]
    names = [*GenerationBody.__struct_fields__, *ALIASES, *LATER, *codes, "invalid_request", "method_not_allowed"]
    missing = [name for name in [*names, "server_error"] if f"`{name}`" not in text]
    missing += [route for route in [*routes, "/docs"] if f"`{route}" not in text and f" {route}`" not in text]
    assert not missing
