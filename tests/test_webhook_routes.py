"""Webhooks over HTTP: operators register endpoints, the server tells them, and docs/webhooks.md checks signatures."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook as Verifier

from server.app import create_app
from server.identity.guard import Access, access_of
from server.settings import Settings
from storage.webhook_records import EventType
from tests.fake_server import PATIENCE, FakeServer, eventually, serving
from tests.fakes import FakeEngine
from tests.faults.dying_server import CATALOG
from tests.receiver import Receiver, receiving, status

GUIDE = (Path(__file__).parent.parent / "docs" / "webhooks.md").read_text(encoding="utf-8")
URL = "https://93.184.216.34/hook"
"""An address that is public and needs no name; nothing is ever sent there."""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeServer]:
    with serving(tmp_path / "data", webhook_hosts="127.0.0.1") as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def call(fake: FakeServer, method: str, path: str = "", code: int = 200, **body: Any) -> dict[str, Any]:
    url = f"{fake.url}/api/v1/webhooks{path}"
    answer = httpx.request(method, url, json=body if method in ("POST", "PATCH") else None, timeout=PATIENCE)
    assert answer.status_code == code, answer.text
    document: dict[str, Any] = answer.json()
    found: dict[str, Any] = document["data" if code < 400 else "error"]
    return found


def register(fake: FakeServer, url: str = URL, **facts: Any) -> dict[str, Any]:
    return call(fake, "POST", code=201, url=url, **facts)


def test_what_happens_is_told_to_an_endpoint_and_the_guide_s_example_believes_it(
    fake: FakeServer, receiver: Receiver
) -> None:
    webhook = register(fake, receiver.url)
    made = fake.post().json()
    httpx.delete(f"{fake.url}/api/images/{made['id']}")
    eventually(lambda: len(receiver.received) == 2)
    events = [Verifier(webhook["secret"]).verify(one.body, one.headers) for one in receiver.received]
    assert [event["type"] for event in events] == ["image.generated", "image.deleted"]
    assert [event["subject"] for event in events] == [made["id"]] * 2
    told = {name: made[name] for name in ("id", "jobId", "prompt", "imageUrl", "parameters", "createdAt")}
    assert events[0]["data"] | told == events[0]["data"]
    eventually(
        lambda: all(one["status"] == "delivered" for one in call(fake, "GET", f"/{webhook['id']}")["deliveries"])
    )
    example: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[0], example)
    first = receiver.received[0]
    assert example["verified"](webhook["secret"], first.headers, first.body) == events[0]
    for headers, body in (
        (first.headers, first.body + b" "),
        (first.headers | {"webhook-id": "another"}, first.body),
        (first.headers | {"webhook-timestamp": "1700000000"}, first.body),
        (first.headers | {"webhook-signature": "v1,AAAA"}, first.body),
    ):
        with pytest.raises(ValueError):
            example["verified"](webhook["secret"], headers, body)


def test_the_guide_names_every_type_and_its_limits() -> None:
    for type in EventType:
        assert f"`{type}`" in GUIDE


def test_the_secret_is_told_once(fake: FakeServer) -> None:
    webhook = register(fake, description="mine", types=["image.deleted"], owner="ann")
    secret = webhook.pop("secret")
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
    assert webhook | {"url": URL, "description": "mine", "types": ["image.deleted"], "owner": "ann"} == webhook
    assert (webhook["enabled"], webhook["trouble"]) == (True, None)
    assert call(fake, "GET")["webhooks"] == [webhook]
    assert call(fake, "GET", f"/{webhook['id']}") == webhook | {"deliveries": []}
    rotated = call(fake, "PATCH", f"/{webhook['id']}", rotate=True)
    assert rotated.pop("secret") not in (secret, None)
    assert rotated == webhook
    assert "whsec" not in httpx.get(f"{fake.url}/api/v1/webhooks/{webhook['id']}").text


def test_a_webhook_is_changed_turned_off_and_removed(fake: FakeServer, receiver: Receiver) -> None:
    place = f"/{register(fake, receiver.url)['id']}"
    assert call(fake, "PATCH", place, enabled=False)["enabled"] is False
    fake.post()
    assert call(fake, "GET", place)["deliveries"] == []
    changed = call(fake, "PATCH", place, enabled=True, types=["image.failed"], description="other")
    assert (changed["types"], changed["description"]) == (["image.failed"], "other")
    fake.post()
    event = call(fake, "POST", place + "/test", 202)["eventId"]
    eventually(lambda: receiver.ids)
    assert receiver.ids == [event], "whatever types it wants"
    assert call(fake, "DELETE", place) == {"id": place[1:]}
    for method, path in (("GET", place), ("PATCH", place), ("DELETE", place), ("POST", place + "/test")):
        assert call(fake, method, path, 404)["code"] == "not_found"


def test_what_became_of_deliveries_is_shown(fake: FakeServer, receiver: Receiver) -> None:
    receiver.answers = [status(503)]
    place = f"/{register(fake, receiver.url)['id']}"
    event = call(fake, "POST", place + "/test", 202)["eventId"]
    eventually(lambda: call(fake, "GET", place)["deliveries"][0]["attempts"])
    (delivery,) = call(fake, "GET", place)["deliveries"]
    assert delivery.pop("nextAttempt") > delivery.pop("attemptedAt")
    assert delivery == {
        "eventId": event,
        "type": "webhook.test",
        "status": "pending",
        "attempts": 1,
        "statusCode": 503,
        "error": "The endpoint answered 503.",
    }


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "url", "missing_required_parameter"),
        ({"url": 5}, "url", "invalid_value"),
        ({"url": None}, "url", "missing_required_parameter"),
        ({"url": "https://127.0.0.2/"}, "url", "invalid_value"),
        ({"url": "https://localhost/"}, "url", "invalid_value"),
        ({"url": "http://93.184.216.34/"}, "url", "invalid_value"),
        ({"url": URL, "types": ["image.updated"]}, "types", "invalid_value"),
        ({"url": URL, "types": ["webhook.test"]}, "types", "invalid_value"),
        ({"url": URL, "types": "image.failed"}, "types", "invalid_value"),
        ({"url": URL, "types": [1]}, "types", "invalid_value"),
        ({"url": URL, "description": "x" * 257}, "description", "invalid_value"),
        ({"url": URL, "owner": "\0"}, "owner", "invalid_value"),
        ({"url": URL, "owner": ""}, "owner", "invalid_value"),
        ({"url": URL, "secret": "mine"}, "secret", "unknown_parameter"),
        ({"url": URL, "enabled": "yes"}, "enabled", "invalid_value"),
    ],
)
def test_a_mistake_names_its_field(fake: FakeServer, body: dict[str, Any], field: str, code: str) -> None:
    error = call(fake, "POST", code=400, **body)
    assert (error["field"], error["code"]) == (field, code), error
    assert call(fake, "GET")["webhooks"] == []


def test_a_change_to_what_cannot_be_changed_is_refused(fake: FakeServer) -> None:
    place = f"/{register(fake)['id']}"
    for field, value in (("url", URL), ("enabled", "no"), ("types", ["x"]), ("rotate", 1)):
        assert call(fake, "PATCH", place, 400, **{field: value})["field"] == field


def test_a_body_is_small(fake: FakeServer) -> None:
    place = f"/{register(fake)['id']}"
    for method, path in (("POST", ""), ("PATCH", place)):
        assert call(fake, method, path, 413, url=URL, description="x" * 16_384)["code"] == "request_too_large"


def test_all_of_it_is_for_operators(tmp_path: Path) -> None:
    app = create_app(Settings(data=tmp_path), CATALOG, FakeEngine)
    handlers = [route for route in app.routes if route.path.startswith("/api/v1/webhooks")]
    assert len(handlers) == 3
    for route in handlers:
        for handler in route.route_handlers:  # type: ignore[union-attr]
            if handler.name != "OPTIONS" and "OPTIONS" not in handler.http_methods:
                assert access_of(handler) is Access.OPERATOR, handler
