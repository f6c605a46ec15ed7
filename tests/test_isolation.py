"""Every route by every object of somebody else's: nothing is read, nothing is changed, and nobody learns what is there.

The routes are the application's own. A new one fails here until it is said below whom it is for and what it is about.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute, WebSocketRoute
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from server.identity.guard import Access, access_of
from tests.fake_server import FakeServer, eventually, serving
from tests.test_identity import bearer, generate, make_key, operator_of

PUBLIC, USER, OPERATOR = Access.PUBLIC, Access.USER, Access.OPERATOR
PROMPT = "ann's own hat"

ROUTES: dict[tuple[str, str], tuple[Access, str]] = {
    ("GET", "/"): (PUBLIC, ""),
    ("GET", "/assets/{file_path:path}"): (PUBLIC, ""),
    ("HEAD", "/assets/{file_path:path}"): (PUBLIC, ""),
    ("GET", "/docs"): (PUBLIC, ""),
    ("GET", "/docs/openapi.json"): (PUBLIC, ""),
    ("GET", "/docs/oauth2-redirect.html"): (PUBLIC, ""),
    ("GET", "/docs/{path:str}"): (PUBLIC, ""),
    ("GET", "/health"): (PUBLIC, ""),
    ("GET", "/ready"): (PUBLIC, ""),
    ("GET", "/media/{kind:str}/{year:str}/{month:str}/{file:str}"): (PUBLIC, "media"),
    ("HEAD", "/media/{kind:str}/{year:str}/{month:str}/{file:str}"): (PUBLIC, "media"),
    ("GET", "/metrics"): (OPERATOR, ""),
    ("GET", "/api/v1/keys"): (OPERATOR, ""),
    ("POST", "/api/v1/keys"): (OPERATOR, ""),
    ("DELETE", "/api/v1/keys/{key_id:str}"): (OPERATOR, ""),
    ("POST", "/api/v1/queue/pause"): (OPERATOR, ""),
    ("POST", "/api/v1/queue/resume"): (OPERATOR, ""),
    ("GET", "/api/v1/queue/jobs"): (OPERATOR, ""),
    ("GET", "/v1/models"): (USER, "all"),
    ("GET", "/v1/models/{name:path}"): (USER, "catalogue"),
    ("POST", "/v1/images/generations"): (USER, "new"),
    ("POST", "/api/v1/images/generate"): (USER, "new"),
    ("GET", "/api/images/history"): (USER, "all"),
    ("GET", "/api/images/{image_id:str}"): (USER, "image"),
    ("DELETE", "/api/images/{image_id:str}"): (USER, "image"),
    ("GET", "/api/v1/me"): (USER, "all"),
    ("GET", "/api/v1/capabilities"): (USER, "all"),
    ("GET", "/api/v1/queue"): (USER, "all"),
    ("GET", "/api/v1/images/queue"): (USER, "all"),
    ("GET", "/api/v1/queue/{number:int}/preview"): (USER, "number"),
    ("POST", "/api/v1/queue/clear"): (USER, "all"),
    ("PUT", "/api/v1/images/queue/{job_id:str}/status"): (USER, "job"),
    ("GET", "/api/v1/jobs"): (USER, "all"),
    ("GET", "/api/v1/jobs/{job_id:str}"): (USER, "job"),
    ("PATCH", "/api/v1/jobs/{job_id:str}"): (USER, "job"),
    ("DELETE", "/api/v1/jobs/{job_id:str}"): (USER, "job"),
    ("GET", "/api/v1/jobs/{job_id:str}/status"): (USER, "job"),
    ("POST", "/api/v1/jobs/{job_id:str}/cancel"): (USER, "job"),
    ("POST", "/api/v1/jobs/{job_id:str}/retry"): (USER, "job"),
    ("GET", "/api/v1/jobs/{job_id:str}/events"): (USER, "job"),
    ("GET", "/api/v1/events"): (USER, "stream"),
    ("WS", "/ws"): (USER, "stream"),
    ("GET", "/api/v1/stats"): (USER, "all"),
    ("GET", "/api/v1/stats/models"): (USER, "all"),
    ("GET", "/api/v1/usage"): (USER, "all"),
    ("GET", "/api/v1/usage/owners"): (OPERATOR, ""),
    ("GET", "/api/v1/credits"): (USER, "all"),
    ("POST", "/api/v1/credits"): (OPERATOR, ""),
    ("GET", "/api/v1/webhooks"): (OPERATOR, ""),
    ("POST", "/api/v1/webhooks"): (OPERATOR, ""),
    ("GET", "/api/v1/webhooks/{webhook_id:str}"): (OPERATOR, ""),
    ("PATCH", "/api/v1/webhooks/{webhook_id:str}"): (OPERATOR, ""),
    ("DELETE", "/api/v1/webhooks/{webhook_id:str}"): (OPERATOR, ""),
    ("POST", "/api/v1/webhooks/{webhook_id:str}/test"): (OPERATOR, ""),
    ("POST", "/api/v1/hub/events"): (USER, "new"),
    ("GET", "/api/v1/prompts"): (USER, "all"),
}
"""Whom each route is for, and what a user reaches by it: an object of theirs by its id, all, or something new."""

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("PATCH", "/api/v1/jobs/{job_id:str}"): {"priority": -9},
    ("PUT", "/api/v1/images/queue/{job_id:str}/status"): {"status": "cancelled"},
}


def found_routes(app: Litestar) -> dict[tuple[str, str], Access]:
    """Every handler by its method and path, but for the framework's own answers to OPTIONS."""
    found = {}
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in route.route_handler_map.items():
                found[str(method), route.path] = access_of(handler)
        elif isinstance(route, WebSocketRoute):
            found["WS", route.path] = access_of(route.route_handler)
    return {route: access for route, access in found.items() if route[0] != "OPTIONS"}


@dataclass
class People:
    """A server, what ann has there, and the headers by which ann and bob are known."""

    fake: FakeServer
    ann: dict[str, str]
    bob: dict[str, str]
    bobs_key: str
    objects: dict[str, list[str]]

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """All that is ann's."""
        jobs = self.fake.rows("SELECT * FROM jobs WHERE owner_id = 'ann' ORDER BY id")
        return jobs + self.fake.rows("SELECT * FROM images WHERE owner_id = 'ann' ORDER BY id")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """Ann has a picture, a job that was cancelled, one that is at work and one that waits."""
    with serving(tmp_path_factory.mktemp("data"), auth="keys", max_rows=2) as fake:
        anns, bobs = make_key(fake)["key"], make_key(fake, "bob")["key"]
        ann = bearer(anns)
        made = generate(fake, anns, prompt=PROMPT, session_id="ann's session").json()
        fake.engine.gates["step"].close()
        jobs = [generate(fake, anns, prompt=PROMPT, **{"async": True}).json()["data"]["job_id"] for _ in range(3)]
        fake.engine.gates["step"].reached.wait(30)
        httpx.delete(f"{fake.url}/api/v1/jobs/{jobs[2]}", headers=ann)
        queue = httpx.get(fake.url + "/api/v1/queue", headers=operator_of(fake)).json()["data"]["images"]
        objects = {
            "job": [made["jobId"], *jobs],
            "image": [made["id"]],
            "number": [str(image["id"]) for image in queue],
            "media": [made["imageUrl"].partition("?")[0], made["thumbnailUrl"].partition("?")[0]],
        }
        assert len(queue) == 2
        eventually(lambda: sorted(fake.statuses) == ["cancelled", "completed", "pending", "processing"])
        yield People(fake, ann, bearer(bobs), bobs, objects)
        fake.engine.open()


def test_every_route_is_classified(people: People) -> None:
    assert found_routes(people.fake.app) == {route: access for route, (access, _) in ROUTES.items()}


@pytest.mark.parametrize("route", [route for route, (access, _) in ROUTES.items() if access is not PUBLIC])
def test_without_a_credential_every_route_that_is_not_public_is_401(people: People, route: tuple[str, str]) -> None:
    method, path = route
    if method == "WS":
        with pytest.raises(Exception, match="HTTP 40[13]"), connect(people.fake.url.replace("http", "ws") + path):
            pass
        return
    for filled in (fill(path, str(uuid4())), fill(path, people.objects["job"][0])):
        answer = httpx.request(method, people.fake.url + filled)
        assert answer.status_code == 401, (method, filled)


@pytest.mark.parametrize("route", [route for route, (access, _) in ROUTES.items() if access is OPERATOR])
def test_a_user_reaches_nothing_of_the_operators(people: People, route: tuple[str, str]) -> None:
    method, path = route
    answer = httpx.request(method, people.fake.url + fill(path, str(uuid4())), headers=people.bob)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "route", [route for route, (_, about) in ROUTES.items() if about in ("job", "image", "number")]
)
def test_another_ones_object_is_as_if_it_were_not_there(people: People, route: tuple[str, str]) -> None:
    method, path = route
    before = people.rows
    nowhere = "999999" if ROUTES[route][1] == "number" else str(uuid4())
    for object_id in people.objects[ROUTES[route][1]]:
        answers = []
        for asked in (object_id, nowhere):
            url = people.fake.url + fill(path, asked)
            answer = httpx.request(method, url, headers=people.bob, json=BODIES.get(route), timeout=10)
            assert answer.status_code == 404, (method, path, answer.text)
            answers.append(answer.text.replace(asked, "ID"))
        assert answers[0] == answers[1]
    assert people.rows == before


def test_another_ones_files_are_as_if_they_were_not_there(people: People) -> None:
    for path in people.objects["media"]:
        image_id, other_id = path.split("/")[-1].partition(".")[0], str(uuid4())
        nowhere = path.replace(image_id, other_id)
        assert httpx.get(people.fake.url + path, headers=people.ann).status_code == 200
        for method in ("GET", "HEAD"):
            answers = [httpx.request(method, people.fake.url + asked, headers=people.bob) for asked in (path, nowhere)]
            assert [answer.status_code for answer in answers] == [404, 404]
            assert answers[0].text.replace(image_id, other_id) == answers[1].text


@pytest.mark.parametrize("route", [route for route, (access, about) in ROUTES.items() if about == "all"])
def test_lists_and_figures_hold_nothing_of_another_one(people: People, route: tuple[str, str]) -> None:
    method, path = route
    before = people.rows
    for parameters in ({}, {"session_id": "ann's session", "limit": 100}, {"owner": "ann"}):
        answer = httpx.request(method, people.fake.url + path, params=parameters, headers=people.bob)
        assert answer.status_code == 200 or ("owner" in parameters and answer.status_code == 403), answer.text
        private = [PROMPT, "ann", *people.objects["job"], *people.objects["image"]]
        assert not [word for word in private if word in answer.text]
    assert people.rows == before


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/prompts"])
def test_another_ones_job_is_no_cursor(people: People, path: str) -> None:
    answers = [
        httpx.get(people.fake.url + path, params={"cursor": cursor}, headers=people.bob)
        for cursor in (people.objects["job"][0], str(uuid4()))
    ]
    assert [answer.status_code for answer in answers] == [404, 404]


def test_figures_of_one_count_nothing_of_another(people: People) -> None:
    usage = httpx.get(people.fake.url + "/api/v1/usage", headers=people.bob).json()["data"]
    assert usage["jobs"] == usage["images"] == 0
    stats = httpx.get(people.fake.url + "/api/v1/stats", headers=people.bob).json()["data"]
    assert stats["jobs"] == stats["images"] == 0 and stats["popularModels"] == []


def test_an_operator_puts_the_queue_in_order_and_reads_nobodys_words(people: People) -> None:
    operator = bearer(make_key(people.fake, "eve", role="operator")["key"])
    jobs = httpx.get(people.fake.url + "/api/v1/queue/jobs", headers=operator)
    assert {(job["id"], job["owner"]) for job in jobs.json()["data"]["jobs"]} == {
        (job, "ann") for job in people.objects["job"][1:3]
    }
    waiting = people.objects["job"][2]
    where = f"{people.fake.url}/api/v1/images/queue/{waiting}/status"
    refused = httpx.post(people.fake.url + "/api/v1/queue/clear?everyone=true", headers=people.bob)
    cancelled = httpx.put(where, json={"status": "cancelled"}, headers=operator)
    assert cancelled.json()["data"]["status"] == "cancelled" and refused.status_code == 403
    again = httpx.put(where, json={"status": "pending"}, headers=operator)
    assert again.json()["data"]["status"] == "pending"
    cleared = httpx.post(people.fake.url + "/api/v1/queue/clear?everyone=true", headers=operator)
    assert cleared.json()["data"] == {"cancelled": 1}
    for answer in (jobs, cancelled, again):
        assert PROMPT not in answer.text and "/media/" not in answer.text
    assert httpx.get(f"{people.fake.url}/api/v1/jobs/{waiting}", headers=operator).status_code == 404


def test_only_an_operator_puts_work_before_other_peoples(people: People) -> None:
    job = f"{people.fake.url}/api/v1/jobs/{people.objects['job'][1]}"
    for place in ({"priority": 1}, {"position": "front"}):
        answer = httpx.patch(job, json=place, headers=people.ann)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    for path in ("/v1/images/generations", "/api/v1/images/generate"):
        answer = httpx.post(people.fake.url + path, json={"prompt": "a hat", "priority": 1}, headers=people.ann)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    operator = bearer(make_key(people.fake, "eve", role="operator")["key"])
    mine = httpx.post(
        people.fake.url + "/api/v1/images/generate", json={"prompt": "a hat", "priority": 1}, headers=operator
    )
    assert mine.status_code == 202
    httpx.delete(f"{people.fake.url}/api/v1/jobs/{mine.json()['data']['job_id']}", headers=operator)


def test_streams_tell_nothing_of_another_one(people: People) -> None:
    """Ann's job is moved, which her own stream tells, and bob's does not."""
    socket = people.fake.url.replace("http", "ws") + "/ws"
    job = people.objects["job"][1]
    with (
        connect(socket, additional_headers=people.ann) as anns,
        connect(socket, additional_headers=people.bob) as bobs,
        connect(f"{socket}?job={job}", additional_headers=people.bob) as pointed,
    ):
        httpx.patch(f"{people.fake.url}/api/v1/jobs/{job}", json={"priority": -3}, headers=people.ann)
        while job not in str(told := anns.recv(30)) or '"priority":-3' not in str(told):
            pass
        for stream in (bobs, pointed):  # which may say that there is nothing to say
            with suppress(TimeoutError, ConnectionClosed):
                assert json.loads(stream.recv(0.5)) == {"type": "idle"}
    response = httpx.get(f"{people.fake.url}/api/v1/jobs/{job}/events", headers=people.bob)
    assert response.status_code == 404


def fill(path: str, value: str) -> str:
    """A path with its parameter given; where a number is needed, one that nothing has."""
    value = value if value.isdecimal() or "{number" not in path else "999999"
    return "/".join(value if part.startswith("{") else part for part in path.split("/"))
