"""The OpenAPI document: that it tells all of every route, and that the real server does what it says."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Controller, Litestar, get

from pipelines.catalog import Catalog
from server.app import create_app
from server.generation_body import GenerationBody
from server.identity.guard import Access, access_of
from server.openapi.document import document, operations
from server.settings import Settings
from tests.fake_server import serving
from tests.fakes import FakeEngine, entry

ROOT = Path(__file__).parent.parent
GENERATION_ROWS = (ROOT / "docs" / "api.md").read_text().split("## POST /v1/images/generations")[1].split("\n## ")[0]
ANSWERED = re.compile(r"2\d\d")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Litestar:
    catalog = Catalog({"fake": entry()}, "fake", Path("models.toml"))
    return create_app(Settings(data=tmp_path_factory.mktemp("data")), catalog, FakeEngine)


@pytest.fixture(scope="module")
def written(app: Litestar) -> dict[str, Any]:
    return document(app)


def each_operation(written: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in written["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all that it is made of."""
    if isinstance(schema, dict):
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from parts(part)


def vague(written: dict[str, Any]) -> list[str]:
    """The operations and shapes that say "an object" or "anything" and no more."""
    found = []
    for name, operation in each_operation(written):
        for status, response in operation["responses"].items():
            schemas = [content["schema"] for content in response.get("content", {}).values() if "schema" in content]
            found += [f"{name} {status}" for schema in schemas if "$ref" not in schema and "allOf" not in schema]
    for name, schema in written["components"]["schemas"].items():
        for part in parts(schema):
            if part == {} or (part.get("type") == "object" and not {"properties", "additionalProperties"} & set(part)):
                found.append(name)
    return found


def test_every_answer_has_a_schema(written: dict[str, Any]) -> None:
    assert vague(written) == []


def test_a_route_that_answers_just_an_object_is_found() -> None:
    class Careless(Controller):
        tags = ["careless"]

        @get("/careless", sync_to_thread=False)
        def careless(self) -> dict[str, Any]:
            """Who knows?"""
            return {}

    assert vague(document(Litestar([Careless]))) == ["GET /careless 200"]


def test_every_operation_is_named_and_told_in_words(written: dict[str, Any]) -> None:
    told = list(each_operation(written))
    names = [operation["operationId"] for _, operation in told]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)
    tags = {tag["name"] for tag in written["tags"] if tag["description"]}
    for name, operation in told:
        assert operation["summary"], name
        assert set(operation["tags"]) <= tags, f"{name}: server/openapi/words.py describes no tag {operation['tags']}"
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description"), f"{name}: server/openapi/words.py describes no {parameter['name']}"
        for status, response in operation["responses"].items():
            assert response["description"], f"{name} {status}"
            assert "x-request-id" in response["headers"], f"{name} {status}"


def test_every_reference_leads_somewhere(written: dict[str, Any]) -> None:
    for reference in [part["$ref"] for part in parts(written) if isinstance(part.get("$ref"), str)]:
        place: Any = written
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_errors_have_the_shape_of_their_dialect_and_never_the_frameworks(written: dict[str, Any]) -> None:
    assert "status_code" not in json.dumps(written)
    for name, operation in each_operation(written):
        dialect = "OpenAIError" if " /v1/" in name else "ApplicationError"
        for status, response in operation["responses"].items():
            for content in response.get("content", {}).values():
                if "allOf" in content.get("schema", {}):
                    assert content["schema"]["allOf"][0] == {"$ref": f"#/components/schemas/{dialect}"}, (name, status)
        assert {"400", "500"} <= set(operation["responses"]), name


def test_whoever_is_asked_who_they_are_is_told_so(app: Litestar, written: dict[str, Any]) -> None:
    for operation in operations(app):
        told = written["paths"][operation.path][operation.method]
        if access_of(operation.handler) is Access.PUBLIC:
            assert told["security"] == [] and "401" not in told["responses"]
        else:
            assert told["security"] == [{"bearer": []}] and {"401", "403"} <= set(told["responses"])


def test_the_reference_and_the_document_give_a_field_the_same_bounds(written: dict[str, Any]) -> None:
    fields = written["components"]["schemas"]["GenerationBody"]["properties"]
    assert set(fields) == set(GenerationBody.__struct_fields__)
    for name, field in fields.items():
        assert field["description"], name
        row = next(line for line in GENERATION_ROWS.splitlines() if line.startswith("|") and f"`{name}`" in line)
        bounds = [field[bound] for bound in ("minimum", "maximum", "maxLength") if bound in field]
        numbers = {float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*\d|-?\d", row)}
        for bound in bounds if name not in ("width", "height") else ():  # which end where the model's own sizes do
            assert bound in numbers, f"docs/api.md gives {name} no {bound}"


def closed(schema: Any) -> Any:
    """A schema of answers that forbids what it does not name, so that an answer with more is found."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(part) for name, part in schema.items()}
    return inner | ({"additionalProperties": False} if "properties" in inner and inner.get("title") else {})


# What the fake models take, so that most requests are carried out; the document itself cannot know the catalogue.
SIDE = {"type": ["integer", "null"], "multipleOf": 8, "minimum": 8, "maximum": 256}
OF_THE_FAKES = {
    "model": {"enum": ["fake", "other", None]},
    "sampler": {"enum": ["Euler a", None]},
    "schedule": {"enum": ["karras", None]},
    "size": {"enum": ["64x64", "auto", None]},
    "width": SIDE,
    "height": SIDE,
}
BODIES = ("GenerationBody", "WantedStatus")


def to_test(url: str) -> dict[str, Any]:
    """The document that the server at this address sends, narrowed to what its models take, without authentication."""
    told: dict[str, Any] = httpx.get(f"{url}/docs/openapi.json").json()
    for _, operation in each_operation(told):
        del operation["security"]
    schemas = told["components"]["schemas"]
    schemas |= {name: closed(schema) for name, schema in schemas.items() if name not in BODIES}
    schemas["GenerationBody"]["properties"] |= OF_THE_FAKES
    return told


# This stream has no end; what it sends is tests/test_live.py's.
ENDLESS = ["--exclude-path", "/api/v1/events"]
# In a chain of requests whoever waits for a picture would wait for ever.
STOPPING = ["--exclude-path", "/api/v1/queue/pause"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, ["--phases", "examples,coverage,fuzzing", *ENDLESS]),
        (None, ["--phases", "fuzzing", *ENDLESS]),
        (None, ["--phases", "stateful", *ENDLESS, *STOPPING]),
    ],
    ids=["always the same", "another every time", "chains of requests"],
)
def test_the_server_does_what_the_document_says(seed: int | None, options: list[str], tmp_path: Path) -> None:
    """No 5xx, no status, header, content type or shape that is not documented, nothing accepted that breaks a rule."""
    seed = random.randrange(2**32) if seed is None else seed
    (tmp_path / "schemathesis.toml").touch()
    with serving(tmp_path / "data", max_rows=8) as fake:
        made = fake.post(n=2).json()
        _, _, kind, year, month, file = made["imageUrl"].split("/")
        known = [
            {"job_id": made["jobId"], "image_id": made["id"]},
            {"kind": kind, "year": year, "month": month, "file": file},
            {"name": "fake"},
        ]
        (tmp_path / "openapi.json").write_text(json.dumps(to_test(fake.url)))
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(tmp_path / "schemathesis.toml")]
        command += ["run", str(tmp_path / "openapi.json"), "--url", fake.url, "--seed", str(seed), *options]
        command += ["--max-examples", "12", "--generation-database", "none", "--no-color", "--request-timeout", "30"]
        # A body that keeps to the schema may still break a rule between two fields, or ask for what is not there.
        command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
        variables = os.environ | {"SCHEMATHESIS_HOOKS": "tests.openapi_hooks", "PYTHONPATH": str(ROOT)}
        variables |= {"DARKROOM_TEST_KNOWN": json.dumps(known)}
        done = subprocess.run(
            command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=390
        )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"


def test_options_name_every_method_of_a_path(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as fake:
        answer = httpx.options(f"{fake.url}/api/v1/jobs/x")
        refused = httpx.post(f"{fake.url}/api/v1/jobs/x")
    assert answer.headers["allow"] == "DELETE, GET, OPTIONS, PATCH"
    assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (
        405,
        {"DELETE", "GET", "OPTIONS", "PATCH"},
    )
