"""The message hub: events of other programs come in, ask for pictures by tables of models.toml, and never twice."""

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.catalog import Catalog
from pipelines.errors import CatalogError, InvalidRequest
from pipelines.families import family_facts
from pipelines.models_toml import load_catalog, look
from server.catalogue import Catalogue
from server.generation import read_body
from server.hub.mappings import check_mappings, fields_of
from tests.conftest import CATALOG
from tests.fake_server import PATIENCE, FakeServer, eventually, serving
from tests.fakes import entry

STRUCTURED = "application/cloudevents+json"
HUB = {
    "character.created": {
        "prompt": "portrait of {name}, {race?} {class.name}, {traits?}",
        "negative_prompt": "text",
        "session_id": "{campaign_id?}",
        "size": "64x128",
        "steps": 3,
        "n": 2,
    },
    "campaign.location_added": {"prompt": "a map of {name}"},
}


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    catalog = Catalog({"fake": entry("fake")}, "fake", Path("models.toml"), hub=HUB)
    with serving(tmp_path_factory.mktemp("hub"), catalog=catalog) as running:
        yield running


def event(type: str, data: Any, id: str, **attributes: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": id, "source": "/campaigns", "type": type, "data": data} | attributes


def send(fake: FakeServer, body: Any, declared: str = STRUCTURED, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": declared} | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{fake.url}/api/v1/hub/events", content=content, headers=sent, timeout=PATIENCE)


def job(fake: FakeServer, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    place = answer.headers["location"]
    eventually(lambda: httpx.get(fake.url + place).json()["data"]["status"] == "completed")
    found: dict[str, Any] = httpx.get(fake.url + place).json()["data"]
    return found


def refused(answer: httpx.Response, status: int = 400) -> tuple[str, str | None]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    return error["code"], error.get("field")


def test_a_generation_is_asked_for_in_its_own_words(fake: FakeServer) -> None:
    made = job(fake, send(fake, event("generation.requested", {"prompt": "a hat", "cfgScale": 3, "n": 2}, "g1")))
    assert (made["prompt"], len(made["resultImages"])) == ("a hat", 2)
    assert made["resultImages"][0]["parameters"]["cfgScale"] == 3


def test_a_table_makes_a_picture_of_an_event(fake: FakeServer) -> None:
    data = {"name": "Ada", "class": {"name": "bard"}, "traits": ["tall", 7, True], "campaign_id": 12, "more": {}}
    made = job(fake, send(fake, event("character.created", data, "c1", subject="x", time="2026-11-22T00:00:00Z")))
    assert made["prompt"] == "portrait of Ada, bard, tall, 7, true"
    assert (made["sessionId"], made["imageCount"], made["negativePrompt"]) == ("12", 2, "text")
    image = made["resultImages"][0]
    assert (image["width"], image["height"], image["parameters"]["steps"]) == (64, 128, 3)


def test_binary_events_are_read_from_their_headers(fake: FakeServer) -> None:
    attributes = {"ce_specversion": "1.0", "ce_id": "b%201", "ce_source": "/x", "ce_type": "campaign.location_added"}
    made = job(fake, send(fake, {"name": "Rome"}, "application/json; charset=utf-8", **attributes))
    assert made["prompt"] == "a map of Rome"
    again = send(fake, event("campaign.location_added", {"name": "Rome"}, "b 1", source="/x"))
    assert again.json()["data"]["job_id"] == made["id"], "the same event in the other mode"


@pytest.mark.parametrize("type", ["character.updated", "campaign.deleted", "x", "__class__"])
def test_what_nothing_is_made_of_is_taken_and_said(fake: FakeServer, type: str) -> None:
    jobs = len(fake.statuses)
    answer = send(fake, event(type, {"name": "x"}, "i1"))
    assert answer.status_code == 202
    assert "makes nothing of" in answer.json()["data"]["ignored"]
    assert len(fake.statuses) == jobs


def test_the_same_event_is_the_same_job(fake: FakeServer) -> None:
    body = event("generation.requested", {"prompt": "twice"}, "d1")
    jobs = len(fake.statuses)
    answers = [send(fake, body | {"time": f"2026-11-22T00:00:0{number}Z"}) for number in range(3)]
    assert len({answer.json()["data"]["job_id"] for answer in answers}) == 1
    assert len(fake.statuses) == jobs + 1
    other = send(fake, body | {"source": "/others"}), send(fake, body | {"id": "d2"})
    assert len({answer.json()["data"]["job_id"] for answer in (*answers, *other)}) == 3
    changed = send(fake, body | {"data": {"prompt": "thrice"}})
    assert refused(changed, 422) == ("idempotency_key_reused", None)
    assert changed.json()["error"]["message"].startswith("The id 'd1' of the source '/campaigns' was used for another")


def test_the_generation_s_own_rules_hold(fake: FakeServer) -> None:
    answers = {
        "steps": send(fake, event("generation.requested", {"prompt": "x", "steps": 999}, "r1")),
        "nope": send(fake, event("generation.requested", {"prompt": "x", "nope": 1}, "r2")),
        "prompt": send(fake, event("generation.requested", {}, "r3")),
    }
    assert {name: refused(answer)[1] for name, answer in answers.items()} == {name: name for name in answers}


@pytest.mark.parametrize(
    ("data", "code", "field"),
    [
        ({}, "missing_required_parameter", "data.name"),
        ({"name": None}, "missing_required_parameter", "data.name"),
        ({"name": "x"}, "missing_required_parameter", "data.class.name"),
        ({"name": "x", "class": "bard"}, "missing_required_parameter", "data.class.name"),
        ({"name": {"first": "x"}, "class": {"name": "y"}}, "invalid_value", "data.name"),
        ({"name": [["x"]], "class": {"name": "y"}}, "invalid_value", "data.name"),
        ({"name": ["x", {}], "class": {"name": "y"}}, "invalid_value", "data.name"),
        ({"name": "x", "class": {"name": "y"}, "traits": [[]]}, "invalid_value", "data.traits"),
        ({"name": "a\0b", "class": {"name": "y"}}, "invalid_value", "prompt"),
        ({"name": "a" * 32_001, "class": {"name": "y"}}, "invalid_value", "prompt"),
        ({"name": "x", "class": {"name": "y"}, "campaign_id": "z" * 257}, "invalid_value", "session_id"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_name(
    fake: FakeServer, data: dict[str, Any], code: str, field: str
) -> None:
    assert refused(send(fake, event("character.created", data, "m1"))) == (code, field)


BAD = event("generation.requested", {"prompt": "x"}, "e1")


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"", "invalid_value", "body"),
        (b"[]", "invalid_value", "body"),
        ([BAD], "invalid_value", "body"),
        ({}, "missing_required_parameter", "specversion"),
        (BAD | {"specversion": "0.3"}, "invalid_value", "specversion"),
        (BAD | {"specversion": 1.0}, "invalid_value", "specversion"),
        (BAD | {"id": ""}, "invalid_value", "id"),
        (BAD | {"id": None}, "missing_required_parameter", "id"),
        (BAD | {"id": 5}, "invalid_value", "id"),
        (BAD | {"id": "x" * 256}, "invalid_value", "id"),
        (BAD | {"id": "a\nb"}, "invalid_value", "id"),
        (BAD | {"source": "a\0"}, "invalid_value", "source"),
        (BAD | {"type": ["generation.requested"]}, "invalid_value", "type"),
        (BAD | {"data": "x"}, "invalid_value", "data"),
        (BAD | {"data": None}, "invalid_value", "data"),
        ({name: value for name, value in BAD.items() if name != "data"}, "invalid_value", "data"),
        (BAD | {"data_base64": "e30="}, "invalid_value", "datacontenttype"),
        (BAD | {"datacontenttype": "text/xml"}, "invalid_value", "datacontenttype"),
    ],
)
def test_an_envelope_that_is_none_is_refused_by_attribute(fake: FakeServer, body: Any, code: str, field: str) -> None:
    assert refused(send(fake, body)) == (code, field)


@pytest.mark.parametrize("declared", ["", "text/plain", "application/cloudevents-batch+json", "application/xml"])
def test_only_one_event_as_json_is_read(fake: FakeServer, declared: str) -> None:
    assert refused(send(fake, BAD, declared), 415) == ("unsupported_media_type", None)


def test_a_binary_event_needs_its_headers(fake: FakeServer) -> None:
    assert refused(send(fake, {"prompt": "x"}, "application/json")) == ("missing_required_parameter", "specversion")


def test_a_whole_event_that_is_declared_as_plain_json_is_told_its_type(fake: FakeServer) -> None:
    answer = send(fake, BAD, "application/json")
    assert refused(answer, 415) == ("unsupported_media_type", None)
    assert f"Content-Type: {STRUCTURED}" in answer.json()["error"]["message"]
    data = {"name": "Rome", "specversion": "2"}
    attributes = {"ce_specversion": "1.0", "ce_id": "b2", "ce_source": "/x", "ce_type": "campaign.location_added"}
    assert send(fake, data, "application/json", **attributes).status_code == 202, "a field of its data"


@pytest.mark.parametrize("depth", [100, 400, 900, 960, 1500, 100_000])
@pytest.mark.parametrize("field", ["name", "more"])
def test_nesting_however_deep_is_a_mistake_of_the_client_s(fake: FakeServer, depth: int, field: str) -> None:
    body = json.dumps(event("campaign.location_added", {"name": "x", field: 0}, f"{field} {depth}"))
    answer = send(fake, body.replace(f'"{field}": 0', f'"{field}": {"[" * depth}{"]" * depth}').encode())
    assert answer.status_code in (400, 202 if field == "more" else 400), answer.text


def test_no_other_route_reads_cloud_events(fake: FakeServer) -> None:
    headers = {"content-type": STRUCTURED}
    answer = httpx.post(f"{fake.url}/v1/images/generations", content=b'{"prompt": "x"}', headers=headers)
    assert answer.status_code == 415


HOSTILE = [
    "{prompt}", "{name}", "{name?}", "{__class__}", "{0}", "{}", "{{", "}}", "{name.__class__.__mro__}", "%s %(name)s",
    "$name ${name}", "\\g<0> \\1", "{name!r:>1000000000}", "<lora:x:1>", "a\nb", "\u202e\U0001f3a9",
    "'; DROP TABLE jobs; --",
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE)
def test_data_is_put_in_as_it_is_and_never_read_as_a_template(value: str) -> None:
    assert fields_of({"prompt": "a {name} b {name}"}, {"name": value}) == {"prompt": f"a {value} b {value}"}


@pytest.mark.parametrize(
    "template",
    [
        "{name.__class__}",
        "{name.upper}",
        "{name._0}",
        "{data.__init__.__globals__}",
        "{__class__}",
        "{items}",
        "{keys}",
    ],
)
def test_a_template_reaches_fields_of_the_data_and_nothing_else(template: str) -> None:
    with pytest.raises(InvalidRequest):
        fields_of({"prompt": template}, {"name": "x", "data": {}})


@pytest.mark.parametrize("text", ["{a|b}", "{ name }", "{name!r}", "{name:>9}", "{name[0]}", "{}", "{0}", "{name()}"])
def test_braces_that_hold_no_name_are_text(text: str) -> None:
    assert fields_of({"prompt": text}, {"name": "x"}) == {"prompt": text}


@pytest.mark.parametrize(
    ("template", "data", "text"),
    [
        ("a {name}, {x?}", {}, "a Ada"),
        ("{x?}, a {name}", {}, "a Ada"),
        ("{x?}, {y?} {name}, {z?}", {}, "Ada"),
        ("a, {x?}, {y?}, b", {}, "a, b"),
        ("a, {x?}, {y?}, b", {"y": 1}, "a, 1, b"),
        ("a {x?} b", {}, "a b"),
        ("a {x?}, b", {}, "a, b"),
        ("a,{x?},\nb", {}, "a,\nb"),
        ("{x?}", {}, ""),
        ("{name}, {x?}", {"x": []}, "Ada"),
        ("{name}, {x?}", {"x": ["", None, 0]}, "Ada, 0"),
        ("{name}, {x?}", {"x": ""}, "Ada"),
        ("{x}, {y?}", {"x": ",  , odd ,"}, ",  , odd ,"),
        ("a,  , {x?},", {"x": 1}, "a,  , 1,"),
    ],
)
def test_separators_go_with_the_empty_place_between_them(template: str, data: dict[str, Any], text: str) -> None:
    assert fields_of({"prompt": template}, {"name": "Ada"} | data) == {"prompt": text}


def test_only_texts_are_templates() -> None:
    table = {"prompt": "x", "model": "{model}", "steps": 3}
    assert fields_of(table, {"model": "secret"}) == table


def read(folder: Path, hub: str) -> Catalog:
    (folder / "models.toml").write_text(CATALOG + hub)
    catalog = load_catalog(folder / "models.toml", family_facts())
    check_mappings(catalog)
    return catalog


@pytest.fixture
def folder(checkpoints: Path, tmp_path: Path) -> Path:
    for name in ("sdxl", "sd3", "sd3-t5"):
        (tmp_path / name).symlink_to(checkpoints / name)
    shutil.copy(checkpoints / "models.toml", tmp_path)
    return tmp_path


def test_tables_stand_in_models_toml(folder: Path) -> None:
    catalog = read(folder, '[hub."character.updated"]\nprompt = "{name}"\nmodel = "tiny-sd3"\nsteps = 2\n')
    assert catalog.hub == {"character.updated": {"prompt": "{name}", "model": "tiny-sd3", "steps": 2}}


def test_tables_may_stand_there_without_a_model_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('[hub."character.updated"]\nprompt = "{name}"\n')
    catalog = load_catalog(tmp_path / "models.toml", family_facts())
    check_mappings(catalog)
    assert set(catalog.hub) == {"character.updated"}


@pytest.mark.parametrize(
    ("hub", "complaint"),
    [
        ('[hub."character.create"]\nprompt = "x"', "hub.character.create: .*did you mean 'character.created'"),
        ('[hub."generation.requested"]\nprompt = "x"', "hub.generation.requested: it is no event"),
        (
            '[hub]\n"character.created" = "x"',
            r'hub.character.created: write it as a table, \[hub."character.created"\]',
        ),
        ('[hub."character.created"]\nsteps = 3', "hub.character.created: prompt is required"),
        ('[hub."character.created"]\nprompt = "x"\nstepz = 3', "Unknown field 'stepz'; did you mean 'steps'"),
        ('[hub."character.created"]\nprompt = "x"\nsteps = "3"', "steps must be a whole number"),
        ('[hub."character.created"]\nprompt = "x"\nmodel = "nope"', "The model 'nope' does not exist"),
        ('[hub."character.created"]\nprompt = "x"\nsize = "33x32"', "hub.character.created: .*33x32"),
        ('[[hub]]\nprompt = "x"', "hub must be a table|hub: must be a table"),
    ],
)
def test_a_table_that_could_make_nothing_stops_the_start(folder: Path, hub: str, complaint: str) -> None:
    with pytest.raises(CatalogError, match=complaint):
        read(folder, hub)


@pytest.mark.anyio
async def test_an_edit_is_followed_and_a_broken_one_refused(folder: Path) -> None:
    file = folder / "models.toml"
    catalogue = Catalogue(read(folder, '[hub."character.created"]\nprompt = "{name}"\n'))
    broken, mended = ('[hub."character.created"]\nprompt = "new {name}"\n' + end for end in ("steps = 999\n", ""))
    file.write_text(CATALOG + broken)
    assert await catalogue._read(file, look(file))
    assert catalogue.fault is not None and "hub.character.created: steps" in catalogue.fault.told
    assert str(folder) not in catalogue.fault.told
    assert catalogue.present.hub["character.created"] == {"prompt": "{name}"}
    file.write_text(CATALOG + mended)
    assert await catalogue._read(file, look(file))
    assert (catalogue.present.hub["character.created"], catalogue.fault) == ({"prompt": "new {name}"}, None)


def test_the_guide_s_table_fits_the_guide_s_event() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "webhooks.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    (sent,) = re.findall(r"hub/events .*?-d '(.*?)'", guide, re.DOTALL)
    event = json.loads(sent)
    fields = fields_of(tomllib.loads(written)["hub"][event["type"]], event["data"])
    assert read_body(fields).prompt == "portrait of Ada, bard, tall, grim"
