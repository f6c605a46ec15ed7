"""Credit over HTTP: granted, reserved, settled, given back, told; and what prices come to."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI, RateLimitError

from pipelines.catalog import Catalog
from pipelines.errors import ImageFailed
from pipelines.pricing import Price
from server.identity.caller import LOCAL
from tests.fake_server import FakeServer, eventually, serving
from tests.fakes import entry
from tests.ledgers import check_ledger
from tests.test_job_routes import call, ended, look, submit
from tests.test_limits import ANN, become

PRICES = {
    "fake": Price(Decimal("0.1")),
    "sized": Price(Decimal("0.5"), (("64x64", Decimal("0.2")),)),
    "work": Price(per_megapixel_step=Decimal("2.5")),
}
KEYS = {"credits": "on", "auth": "keys"}
CATALOG = Catalog({name: entry(name, price=price) for name, price in PRICES.items()}, "fake", Path("models.toml"))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """Ann has a balance of 1."""
    with serving(tmp_path, catalog=CATALOG, credits="on") as running:
        grant(running, owner="ann", amount=1)
        become(monkeypatch, ANN)
        yield running
        eventually(lambda: not running.queue)
    check_ledger(tmp_path)


def grant(fake: FakeServer, status: int = 201, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    return call(fake, "POST", "/credits", status, json=fields, headers=headers)


def balance(fake: FakeServer) -> tuple[float, float]:
    found = call(fake, "GET", "/credits")
    return found["balance"], found["reserved"]


def test_a_picture_is_paid_for_when_it_is_made(fake: FakeServer) -> None:
    gate = fake.engine.gates["finish"]
    gate.close()
    job = submit(fake, n=3)
    assert gate.reached.wait(30)
    assert (look(fake, job)["expectedCost"], look(fake, job)["cost"]) == (0.3, 0.0)
    assert balance(fake) == (0.7, 0.3)
    gate.open()
    done = ended(fake, job)
    assert (done["expectedCost"], done["cost"]) == (0.3, 0.3), "0.1 + 0.1 + 0.1, exactly"
    assert balance(fake) == (0.7, 0.0)
    entries = call(fake, "GET", "/credits?limit=3")["entries"]
    assert [(one["kind"], one["amount"], one["balance"], one["jobId"]) for one in entries] == [
        ("settle", -0.3, 0.7, job),
        ("refund", 0.3, 1.0, job),
        ("reserve", -0.3, 0.7, job),
    ]
    assert call(fake, "GET", "/usage")["balance"] == 0.7


def test_what_is_not_made_is_not_paid_for(fake: FakeServer) -> None:
    fake.engine.failing_seeds[8] = ImageFailed("planted")
    assert fake.post(n=3, seed=7).json()["cost"] == 0.2
    assert balance(fake) == (0.8, 0.0)
    assert fake.post(seed=8).status_code == 500
    assert balance(fake) == (0.8, 0.0)
    fake.app.state.services.scheduler.pause(True)
    first, second = submit(fake, n=4), submit(fake, n=4)
    assert balance(fake)[0] == 0.0
    call(fake, "DELETE", f"/jobs/{first}")
    assert balance(fake) == (0.4, 0.4)
    call(fake, "POST", "/queue/clear")
    assert balance(fake) == (0.8, 0.0)
    call(fake, "POST", f"/jobs/{second}/retry", status=202)
    assert balance(fake) == (0.4, 0.4)
    fake.app.state.services.scheduler.pause(False)
    assert ended(fake, submit(fake))["cost"] == 0.1


def test_without_credit_nothing_is_recorded(fake: FakeServer) -> None:
    before = fake.rows("SELECT count(*) FROM jobs")
    with OpenAI(base_url=fake.url + "/v1", api_key="-") as client, pytest.raises(RateLimitError) as refused:
        client.images.generate(prompt="a hat", model="work", extra_body={"steps": 100, "n": 2})
    assert refused.value.body == {
        "message": "The balance is 1, and 2.048 is needed. Ask for fewer, smaller or cheaper pictures, or have the"
        " operator grant more.",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.value.response.headers
    assert fake.rows("SELECT count(*) FROM jobs") == before


def test_operators_pay_nothing(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, LOCAL)
    assert fake.post(n=2).json()["cost"] == 0.2
    assert call(fake, "GET", "/credits")["entries"] == []
    assert balance(fake) == (0.0, 0.0)


def test_credit_does_not_count_unless_it_is_turned_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, ANN)
    with serving(tmp_path, catalog=CATALOG) as fake:
        assert fake.post().json()["cost"] == 0.1
        found = call(fake, "GET", "/credits")
    assert (found["enabled"], found["balance"], found["entries"]) == (False, 0.0, [])


def test_a_price_holds_from_when_a_job_is_handed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, catalog=CATALOG, credits="on") as fake:
        grant(fake, owner="ann", amount=1)
        call(fake, "POST", "/queue/pause")
        become(monkeypatch, ANN)
        job = submit(fake, n=2)
    dearer = Catalog({"fake": entry(price=Price(Decimal(9)))}, "fake", Path("models.toml"))
    with serving(tmp_path, catalog=dearer, credits="off") as again:
        become(monkeypatch, LOCAL)
        call(again, "POST", "/queue/resume")
        become(monkeypatch, ANN)
        assert ended(again, job)["cost"] == 0.2
        assert balance(again) == (0.8, 0.0), "what was reserved is settled, whatever the setting is by now"


def test_grants_are_the_operators_and_happen_once(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert grant(fake, 403, owner="ann", amount=5)["code"] == "forbidden"
    become(monkeypatch, LOCAL)
    gift = {"owner": "bob", "amount": 2.5, "note": "a gift"}
    first = grant(fake, **gift, reference="invoice 7")
    assert (first["owner"], first["kind"], first["amount"], first["balance"]) == ("bob", "grant", 2.5, 2.5)
    assert grant(fake, **gift, reference="invoice 7") == first
    assert grant(fake, 422, **gift | {"amount": 3}, reference="invoice 7")["code"] == "idempotency_key_reused"
    keyed = grant(fake, headers={"Idempotency-Key": "k"}, **gift)
    assert keyed == grant(fake, headers={"Idempotency-Key": "k"}, **gift) and keyed["balance"] == 5.0
    assert grant(fake, owner="bob", amount=-4)["balance"] == 1.0
    page = call(fake, "GET", "/credits?owner=bob&limit=2")
    assert (page["owner"], page["balance"], page["enabled"]) == ("bob", 1.0, True)
    rest = call(fake, "GET", f"/credits?owner=bob&limit=2&cursor={page['pagination']['next_cursor']}")
    assert [one["amount"] for one in page["entries"] + rest["entries"]] == [-4.0, 2.5, 2.5]
    assert rest["pagination"]["next_cursor"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"amount": 1}, "owner"),
        ({"owner": "", "amount": 1}, "owner"),
        ({"owner": "x" * 257, "amount": 1}, "owner"),
        ({"owner": 7, "amount": 1}, "owner"),
        ({"owner": "ann"}, "amount"),
        ({"owner": "ann", "amount": 0}, "amount"),
        ({"owner": "ann", "amount": "1"}, "amount"),
        ({"owner": "ann", "amount": True}, "amount"),
        ({"owner": "ann", "amount": 0.0000001}, "amount"),
        ({"owner": "ann", "amount": 1e300}, "amount"),
        ({"owner": "ann", "amount": -2}, "amount"),
        ({"owner": "ann", "amount": 1, "note": ["x"]}, "note"),
        ({"owner": "ann", "amount": 1, "note": "\0"}, "note"),
        ({"owner": "ann", "amount": 1, "reference": "x" * 256}, "reference"),
        ({"owner": "ann", "amount": 1, "currency": "EUR"}, "currency"),
    ],
)
def test_a_bad_grant_names_the_field(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], field: str
) -> None:
    become(monkeypatch, LOCAL)
    assert grant(fake, 400, **body)["field"] == field


def test_a_refused_grant_says_what_an_operator_can_do(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, LOCAL)
    taken = grant(fake, 400, owner="ann", amount=-2)["message"]
    assert taken == "amount: the balance of 'ann' is 1; no more than that can be taken back."
    assert "not a string" in grant(fake, 400, owner="ann", amount="1")["message"]
    assert grant(fake, 413, owner="ann", amount=1, note="x" * 16_384)["code"] == "request_too_large"


@pytest.mark.parametrize(("settings", "warned"), [({"credits": "on"}, True), ({}, False), (KEYS, False)])
def test_credits_that_charge_nobody_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, str], warned: bool
) -> None:
    with serving(tmp_path, **settings):
        pass
    assert ("DARKROOM_CREDITS=on charges nobody" in caplog.text) == warned


def test_a_grant_has_one_name(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, LOCAL)
    answer = grant(fake, 400, {"Idempotency-Key": "k"}, owner="ann", amount=1, reference="r")
    assert "not both" in answer["message"]
    assert grant(fake, 400, {"Idempotency-Key": ""}, owner="ann", amount=1)["field"] == "Idempotency-Key"


def test_prices_are_told_and_come_to_costs(fake: FakeServer) -> None:
    models = httpx.get(fake.url + "/v1/models").json()["data"]
    told = {"fake": 0.1, "sized": {"64x64": 0.2, "default": 0.5}, "work": {"per_megapixel_step": 2.5}}
    assert {model["id"]: model["price"] for model in models} == told
    assert {model["name"]: model["price"] for model in call(fake, "GET", "/capabilities")["models"]} == told
    assert fake.post(model="sized").json()["cost"] == 0.2
    assert fake.post(model="sized", size="128x64").json()["cost"] == 0.5
    work = fake.post(model="work", steps=5, n=2).json()
    assert work["cost"] == 2 * 0.0512
    history = httpx.get(fake.url + "/api/images/history").json()["images"]
    assert [image["cost"] for image in history] == [0.0512, 0.0512, 0.5, 0.2]
