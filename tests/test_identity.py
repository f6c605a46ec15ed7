"""Who is asking: keys, tokens, signed addresses, and the streams of those who are no longer let in."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from openai import AuthenticationError, OpenAI, PermissionDeniedError
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from pipelines.catalog import Catalog
from server.app import create_app
from server.identity import gate, published
from server.identity.caller import Caller
from server.identity.desk import KeyDesk
from server.identity.keys import NewKey
from server.identity.links import Links
from server.identity.local_pass import NAME, LocalPass
from server.identity.tokens import Trust
from server.remote import Remote, Unreachable
from server.settings import Settings
from storage.database import Database
from storage.media import ImageFormat, MediaName
from tests.fake_server import GENERATIONS, FakeServer, eventually, serving
from tests.fakes import FakeEngine, entry

SECRET = "an old secret of at least thirty-two bytes"
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@contextmanager
def guarded(tmp_path: Path, **settings: Any) -> Iterator[FakeServer]:
    """A server that asks who comes."""
    with serving(tmp_path, **{"auth": "keys"} | settings) as fake:
        yield fake


def operator_of(fake: FakeServer) -> dict[str, str]:
    """What this machine's operator shows."""
    known = LocalPass.read(fake.data)
    assert known is not None
    return bearer(known.token)


def make_key(fake: FakeServer, owner: str = "ann", **fields: Any) -> dict[str, Any]:
    answer = httpx.post(fake.url + "/api/v1/keys", json={"owner": owner} | fields, headers=operator_of(fake))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()["data"]
    return made


def generate(fake: FakeServer, key: str, **fields: Any) -> httpx.Response:
    return httpx.post(fake.url + GENERATIONS, json={"prompt": "a hat"} | fields, headers=bearer(key), timeout=30)


def me(fake: FakeServer, credential: str) -> httpx.Response:
    return httpx.get(fake.url + "/api/v1/me", headers=bearer(credential))


def test_without_a_key_nothing_is_told_and_the_answer_says_how(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake:
        for headers in (
            {},
            bearer("nonsense"),
            {"Authorization": "Basic eDp5"},
        ):
            answer = httpx.get(fake.url + "/v1/models", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "darkroom keys create" in answer.json()["error"]["message"]
        assert httpx.get(fake.url + "/health").status_code == httpx.get(fake.url + "/ready").status_code == 200


def test_openais_client_sends_its_key_and_raises_what_it_should(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake:
        key, reader = make_key(fake)["key"], make_key(fake, permissions=["read"])["key"]
        with OpenAI(base_url=fake.url + "/v1", api_key=key) as client:
            url = client.images.generate(prompt="a hat").data[0].url  # type: ignore[index]
            assert httpx.get(str(url)).status_code == 200
        with OpenAI(base_url=fake.url + "/v1", api_key="sk-wrong") as client, pytest.raises(AuthenticationError):
            client.models.list()
        with OpenAI(base_url=fake.url + "/v1", api_key=reader) as client, pytest.raises(PermissionDeniedError):
            client.images.generate(prompt="a hat")


def test_a_key_is_shown_once_and_kept_as_a_digest(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake:
        made = make_key(fake, name="laptop", days=30)
        secret = made["key"].removeprefix(f"dk_{made['id']}_")
        listed = httpx.get(fake.url + "/api/v1/keys?owner=ann", headers=operator_of(fake)).json()["data"]["keys"]
        assert listed == [{name: value for name, value in made.items() if name != "key"}]
        told = me(fake, made["key"]).json()["data"]
        assert told == {
            "owner": "ann", "role": "user", "permissions": ["read", "write"], "keyId": made["id"], "auth": "keys",
        }  # fmt: skip
        assert fake.rows("SELECT count(*) FROM api_keys") == [(1,)]
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert secret.encode() not in path.read_bytes(), path


def test_pictures_belong_to_the_owner_whichever_key_made_them(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake:
        first, second, other = make_key(fake)["key"], make_key(fake)["key"], make_key(fake, "bob")["key"]
        made = generate(fake, first)
        assert made.status_code == 200
        path = f"/api/images/{made.json()['id']}/"
        assert httpx.get(fake.url + path, headers=bearer(second)).status_code == 200
        assert httpx.get(fake.url + path, headers=bearer(other)).status_code == 404
        assert fake.rows("SELECT owner_id, key_id IS NOT NULL FROM jobs") == [("ann", 1)]


def test_a_key_that_may_only_read_changes_nothing(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake:
        key = make_key(fake, permissions=["read"])["key"]
        assert httpx.get(fake.url + "/v1/models", headers=bearer(key)).status_code == 200
        refused = generate(fake, key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert fake.statuses == []


def test_what_is_for_operators_is_for_no_user(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake:
        user, operator = make_key(fake)["key"], make_key(fake, "eve", role="operator")["key"]
        for method, path in (("GET", "/api/v1/keys"), ("POST", "/api/v1/queue/pause"), ("GET", "/metrics")):
            assert httpx.request(method, fake.url + path, headers=bearer(user)).status_code == 403
            assert httpx.request(method, fake.url + path, headers=bearer(operator)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"owner": ""}, "owner"),
        ({"owner": "a\nb"}, "owner"),
        ({"owner": "x" * 256}, "owner"),
        ({"role": "king"}, "role"),
        ({"permissions": []}, "permissions"),
        ({"permissions": ["fly"]}, "permissions"),
        ({"days": 0}, "days"),
        ({"days": "2"}, "days"),
        ({"dais": 2}, "dais"),
    ],
)
def test_a_key_that_cannot_be_made_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], field: str) -> None:
    with guarded(tmp_path) as fake:
        answer = httpx.post(fake.url + "/api/v1/keys", json={"owner": "ann"} | fields, headers=operator_of(fake))
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)
        assert fake.rows("SELECT * FROM api_keys") == []


def test_a_key_without_its_scheme_is_told_so(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake:
        answer = httpx.get(fake.url + "/api/v1/me", headers={"Authorization": make_key(fake)["key"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "needs the word `Bearer` before it" in answer.json()["error"]["message"]


def test_an_expired_key_is_worth_nothing(tmp_path: Path) -> None:
    made = KeyDesk(tmp_path).create(NewKey(owner_id="ann", lifetime=timedelta(seconds=-1)))
    with guarded(tmp_path) as fake:
        assert me(fake, made["key"]).status_code == 401


def test_a_key_with_another_ones_secret_is_worth_nothing(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake:
        ann, bob = make_key(fake), make_key(fake, "bob")
        mixed = ann["key"].replace(ann["id"], bob["id"])
        assert me(fake, mixed).status_code == 401


def test_revoking_a_key_cancels_its_jobs_and_ends_its_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "RECHECK_SECONDS", 0.0)
    with guarded(tmp_path) as fake:
        key, kept = make_key(fake), make_key(fake)
        fake.engine.gates["step"].close()
        for credential in (key["key"], kept["key"]):
            assert generate(fake, credential, **{"async": True}).status_code == 202
        ended = threading.Event()

        def listen() -> None:
            with httpx.stream("GET", fake.url + "/api/v1/events", headers=bearer(key["key"]), timeout=30) as stream:
                for _ in stream.iter_lines():
                    heard.set()
            ended.set()

        heard = threading.Event()
        threading.Thread(target=listen).start()
        assert heard.wait(30)
        with connect(fake.url.replace("http", "ws") + "/ws", subprotocols=["darkroom", key["key"]]) as socket:  # type: ignore[list-item]
            assert socket.subprotocol == "darkroom" and socket.recv()
            revoked = httpx.delete(f"{fake.url}/api/v1/keys/{key['id']}", headers=operator_of(fake))
            assert revoked.json()["data"]["valid"] is False
            assert ended.wait(30)
            for _ in socket:  # until it is closed
                pass
        assert me(fake, key["key"]).status_code == 401 and me(fake, kept["key"]).status_code == 200
        fake.engine.gates["step"].open()
        eventually(lambda: sorted(fake.statuses) == ["cancelled", "completed"])
        assert httpx.delete(f"{fake.url}/api/v1/keys/nope", headers=operator_of(fake)).status_code == 404


def test_a_stream_ends_when_the_credential_behind_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "RECHECK_SECONDS", 0.0)
    expires = datetime.now(UTC) + timedelta(seconds=1)

    async def changes() -> AsyncIterator[str]:
        yield "before"
        while datetime.now(UTC) <= expires:
            await asyncio.sleep(0.01)
        yield "after"

    with guarded(tmp_path) as fake:
        admitted = fake.app.state.services.gate.while_admitted

        async def heard(caller: Caller) -> list[str]:
            return [change async for change in admitted(caller, changes())]

        assert "after" not in asyncio.run(heard(Caller("ann", expires=expires)))
        assert asyncio.run(heard(Caller("ann"))) == ["before", "after"]


def test_a_socket_without_a_key_is_not_opened(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake, pytest.raises(InvalidStatus), connect(fake.url.replace("http", "ws") + "/ws"):
        pass


def test_keys_are_made_in_the_database_while_no_server_runs_and_at_the_server_while_one_does(tmp_path: Path) -> None:
    desk = KeyDesk(tmp_path)
    before = desk.create(NewKey(owner_id="ann"))
    with serving(tmp_path, auth="keys", port=0) as fake:
        known = LocalPass.read(tmp_path)
        assert known is not None and (tmp_path / NAME).stat().st_mode & 0o077 == 0
        pass_of_now = json.dumps({"url": fake.url, "token": known.token})  # the test's server was given its port late
        (tmp_path / NAME).write_text(pass_of_now)
        desk = KeyDesk(tmp_path)
        during = desk.create(NewKey(owner_id="bob"))
        assert me(fake, before["key"]).status_code == me(fake, during["key"]).status_code == 200
        assert [key["owner"] for key in desk.all(None)] == ["bob", "ann"]
        assert [key["owner"] for key in desk.all("ann")] == ["ann"]
        with pytest.raises(Unreachable, match=r"^There is no key nope\.$"):
            desk.revoke("nope")
        desk.revoke(before["id"])
        assert me(fake, before["key"]).status_code == 401
    assert LocalPass.read(tmp_path) is None
    (tmp_path / NAME).write_text(pass_of_now)  # as after kill -9
    desk = KeyDesk(tmp_path)
    desk.revoke(during["id"])
    assert [key["valid"] for key in desk.all(None)] == [False, False]


def test_while_authentication_is_off_any_credential_does_and_only_our_own_names_are_answered(tmp_path: Path) -> None:
    with serving(tmp_path, public_url="https://pictures.example.org") as fake:
        assert me(fake, "whatever").json()["data"] == {
            "owner": "local", "role": "operator", "permissions": ["read", "write"], "keyId": None, "auth": "off",
        }  # fmt: skip
        hosts = {"localhost": 200, "127.0.0.1:9000": 200, "[::1]:80": 200, "pictures.example.org": 200}
        hosts |= {"evil.example": 400, "localhost.": 400, "localhost.evil.example": 400, "10.0.0.1": 400, "": 400}
        for host, status in hosts.items():
            for path in ("/v1/models", "/health"):
                assert httpx.get(fake.url + path, headers={"host": host}).status_code == status, host
    with guarded(tmp_path) as fake:
        assert httpx.get(fake.url + "/health", headers={"host": "evil.example"}).status_code == 200


def test_addresses_of_pictures_are_signed_and_those_of_public_ones_plain(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake:
        ann, bob = make_key(fake)["key"], make_key(fake, "bob")["key"]
        made = generate(fake, ann).json()
        for address in (made["imageUrl"], made["thumbnailUrl"], made["data"][0]["url"].removeprefix(fake.url)):
            assert httpx.get(fake.url + address).status_code == 200
            plain = address.partition("?")[0]
            assert httpx.get(fake.url + plain).status_code == 401
            assert httpx.get(fake.url + plain, headers=bearer(ann)).status_code == 200
            assert httpx.get(fake.url + plain, headers=bearer(bob)).status_code == 404
            altered = httpx.get(fake.url + address[:-1] + ("A" if address[-1] != "A" else "B"))
            assert (altered.status_code, altered.json()["error"]["code"]) == (401, "invalid_api_key")
            assert "has expired or was altered" in altered.json()["error"]["message"]
            assert "A credential is needed" in httpx.get(fake.url + plain).json()["error"]["message"]
        mixed = f"{made['thumbnailUrl'].partition('?')[0]}?{made['imageUrl'].partition('?')[2]}"
        assert httpx.get(fake.url + mixed).status_code == 401
        public = generate(fake, ann, public=True).json()
        assert "?" not in public["imageUrl"] and public["public"] is True
        assert httpx.get(fake.url + public["imageUrl"]).status_code == 200
        history = httpx.get(fake.url + "/api/images/history/", headers=bearer(ann)).json()["images"]
        assert [httpx.get(fake.url + image["imageUrl"]).status_code for image in history] == [200, 200]
        httpx.delete(f"{fake.url}/api/images/{made['id']}/", headers=bearer(ann))
        assert httpx.get(fake.url + made["imageUrl"]).status_code == 404


def test_a_key_that_may_only_write_opens_no_picture(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake:
        writer = make_key(fake, permissions=["write"])["key"]
        address = generate(fake, writer).json()["imageUrl"]
        refused = httpx.get(fake.url + address.partition("?")[0], headers=bearer(writer))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert httpx.get(fake.url + address).status_code == 200


def test_a_signed_address_holds_for_its_time_and_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = MediaName.of_image("00000000-0000-4000-8000-000000000000", datetime.now(UTC), ImageFormat.PNG)
    links = Links(b"x" * 32, hours=2)
    path, _, query = links.address(name, public=False).partition("?")
    found = dict(pair.split("=", 1) for pair in query.split("&"))
    now = time.time()
    for hours, admitted in ((1.9, True), (3.1, False)):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + 3600 * hours)
        assert links.admits(path, found) is admitted
    monkeypatch.undo()
    assert not links.admits(path, found | {"expires": str(int(found["expires"]) + 1)})
    assert not links.admits(path, found | {"expires": "²"}) and not links.admits(path, {})
    assert not Links(b"y" * 32, hours=2).admits(path, found)
    with guarded(tmp_path) as fake:
        address = generate(fake, make_key(fake)["key"]).json()["imageUrl"]
    with guarded(tmp_path) as fake:
        assert httpx.get(fake.url + address).status_code == 200


def token(**claims: Any) -> str:
    now = int(time.time())
    return jwt.encode({"sub": "ann", "exp": now + 60, "iat": now} | claims, SECRET, algorithm="HS256")


def test_tokens_signed_with_the_secret_are_taken_and_so_are_keys(tmp_path: Path) -> None:
    with guarded(tmp_path, auth="jwt", jwt_secret=SECRET, jwt_operators="groups=admins, realm.roles=op") as fake:
        assert me(fake, token()).json()["data"]["owner"] == "ann"
        assert me(fake, make_key(fake, "bob")["key"]).json()["data"]["owner"] == "bob"
        roles = [({}, "user"), ({"groups": ["x", "admins"]}, "operator"), ({"groups": "admins"}, "operator")]
        roles += [
            ({"realm": {"roles": ["op"]}}, "operator"),
            ({"realm.roles": "op"}, "operator"),
            ({"realm": 3}, "user"),
        ]
        for claims, role in roles:
            assert me(fake, token(**claims)).json()["data"]["role"] == role, claims


def test_a_token_that_is_not_for_us_is_refused(tmp_path: Path) -> None:
    now = int(time.time())
    bare = {"sub": "ann", "exp": now + 60}
    wrong = [token(exp=now - 3600), token(exp="soon"), token(exp=10**30), token(nbf=now + 3600), token(aud="another")]
    wrong += [token(sub=""), token(sub="x" * 256), token(sub=None), token() + "x", "a.b.c", "x" * 20_000]
    wrong += [token(exp=10**17), token(nbf=float("inf")), token(sub="\ud800"), token(sub="a\nb"), token(sub="local")]
    wrong += [jwt.encode({name: bare[name]}, SECRET) for name in bare]
    wrong += [
        jwt.encode(bare, "another secret of thirty-two bytes!!"),
        jwt.encode(bare, SECRET * 2, algorithm="HS512"),
        jwt.encode(bare, None, algorithm="none"),
        jwt.encode(bare, SECRET, headers={"crit": ["x"], "x": 1}),
    ]
    with guarded(tmp_path, auth="jwt", jwt_secret=SECRET) as fake:
        assert me(fake, jwt.encode(bare, SECRET)).status_code == 200
        for refused in wrong:
            answer = me(fake, refused)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), refused
            assert SECRET not in answer.text and "cannot be fetched" not in answer.text


@contextmanager
def issuer(key: rsa.RSAPrivateKey, kid: str = "one") -> Iterator[tuple[str, list[str]]]:
    """An OpenID Connect provider: its address, and what it was asked for."""
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())) | {
        "kid": kid,
        "alg": "RS256",
        "use": "sig",
    }
    asked: list[str] = []

    class Provider(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            url = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
            found: dict[str, Any] = {"issuer": url, "jwks_uri": url + "/keys"}
            content = json.dumps({"keys": [public]} if self.path == "/keys" else found).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    provider = HTTPServer(("127.0.0.1", 0), Provider)
    thread = threading.Thread(target=provider.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{provider.server_port}", asked
    finally:
        provider.shutdown()
        thread.join()
        provider.server_close()


def test_tokens_of_an_issuer_are_checked_with_the_keys_it_publishes(tmp_path: Path) -> None:
    key, stranger = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    with issuer(key) as (url, asked):

        def signed(by: rsa.RSAPrivateKey = key, kid: str = "one", **claims: Any) -> str:
            whole = {"sub": "ann", "exp": int(time.time()) + 60, "iss": url, "aud": "darkroom"} | claims
            return jwt.encode(whole, by, algorithm="RS256", headers={"kid": kid})

        settings = {"jwt_issuer": url, "jwt_audience": "darkroom", "jwt_operators": "email=ann@example.org"}
        with guarded(tmp_path, auth="jwt", **settings) as fake:
            assert me(fake, signed()).json()["data"] | {"keyId": None} == {
                "owner": "ann", "role": "user", "permissions": ["read", "write"], "keyId": None, "auth": "jwt",
            }  # fmt: skip
            assert me(fake, signed(aud=["x", "darkroom"])).status_code == 200
            email = {"email": "ann@example.org"}
            assert me(fake, signed(**email, email_verified=True)).json()["data"]["role"] == "operator"
            assert me(fake, signed(**email)).json()["data"]["role"] == "user"
            public = key.public_key().public_numbers()
            refused = [signed(stranger), signed(aud="x"), signed(iss="https://evil.example"), signed(kid="two")]
            refused += [signed(exp=1), token(iss=url, aud="darkroom"), jwt.encode({"n": public.n % 7}, SECRET)]
            assert [me(fake, wrong).status_code for wrong in refused] == [401] * len(refused)
            for number in range(5):
                assert me(fake, signed(kid=f"unknown-{number}")).status_code == 401
            assert asked.count("/keys") == 1, "each unknown key was asked for anew"
    with guarded(tmp_path, auth="jwt", jwt_issuer=url, jwt_audience="darkroom") as fake:  # and the issuer is gone
        answer = me(fake, jwt.encode({"sub": "ann"}, key, algorithm="RS256", headers={"kid": "one"}))
        assert answer.status_code == 401 and "cannot be fetched" in answer.json()["error"]["message"]
        assert url not in answer.text


def named(kid: str = "one") -> str:
    """A token as an issuer's are, signed by nobody it knows."""
    return jwt.encode({"sub": "ann"}, STRANGER, algorithm="RS256", headers={"kid": kid})


def test_keys_are_fetched_anew_once_they_are_old_and_once_a_pause_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with ExitStack() as living:
        url, asked = living.enter_context(issuer(key))
        claims = {"sub": "ann", "exp": int(time.time()) + 600, "iss": url, "aud": "darkroom"}
        sound = jwt.encode(claims, key, algorithm="RS256", headers={"kid": "one"})
        with guarded(tmp_path, auth="jwt", jwt_issuer=url, jwt_audience="darkroom") as fake:
            for alien in (token(), jwt.encode(claims, key, algorithm="RS256"), jwt.encode(claims, None, "none"), "x.y"):
                assert me(fake, alien).status_code == 401
            assert asked == [], "somebody was asked for a key that no token named"
            assert [me(fake, sound).status_code for _ in range(3)] == [200] * 3 and asked.count("/keys") == 1
            monkeypatch.setattr(published, "PAUSE_SECONDS", 0.0)
            assert "publishes no key" in me(fake, named("two")).text and asked.count("/keys") == 2
            living.close()
            assert "cannot be fetched" in me(fake, named("two")).text
            assert me(fake, sound).status_code == 200
            monkeypatch.setattr(published, "KEPT_SECONDS", 0.0)
            assert me(fake, sound).status_code == 401


@contextmanager
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
    """An issuer that takes connections and says nothing: its address, and those it has taken."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            while (connection := listener.accept()[0]).recv(1, socket.MSG_PEEK):
                taken.append(connection)
            connection.close()

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", taken
        finally:
            socket.create_connection(listener.getsockname()).close()
            thread.join()
            for connection in taken:
                connection.close()


def test_tokens_of_an_issuer_that_is_silent_hold_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "PATIENCE_SECONDS", 600.0)
    with silent() as (url, taken), ExitStack() as asking:
        fake = asking.enter_context(guarded(tmp_path, auth="jwt", jwt_issuer=url, jwt_audience="darkroom"))
        key = make_key(fake)["key"]
        waiting = [asking.enter_context(socket.create_connection(("127.0.0.1", fake.port))) for _ in range(12)]
        for number, connection in enumerate(waiting):
            head = f"GET /api/v1/me HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {named(str(number))}"
            connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())
        eventually(lambda: taken)
        assert generate(fake, key).status_code == 200
        waiting.pop().close()  # whoever hangs up ends nobody else's wait
        taken[0].shutdown(socket.SHUT_RDWR)
        for connection in waiting:
            answer = b"".join(iter(lambda connection=connection: connection.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 401") and b"cannot be fetched" in answer
        for number in range(5):
            assert "cannot be fetched" in me(fake, named(str(number))).text
        assert len(taken) == 1, "it was asked again at once"


def test_what_holds_a_secret_does_not_tell_it_to_a_log() -> None:
    assert "hush" not in f"{Trust(secret='hush')} {LocalPass('http://localhost', 'hush')} {Remote('http://h', 'hush')}"


def test_a_key_is_not_sent_to_where_an_answer_leads() -> None:
    reached: list[str] = []

    class Leading(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reached.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Leading) as leading:
        thread = threading.Thread(target=leading.serve_forever)
        thread.start()
        try:
            with pytest.raises(Unreachable, match="leads to http://localhost"):
                Remote(f"http://127.0.0.1:{leading.server_port}", "hush").ask("/api/v1/me")
        finally:
            leading.shutdown()
            thread.join()
    assert reached == ["/api/v1/me"]


def test_a_pass_that_cannot_be_written_leaves_the_database_closed(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(mode=0o700)
    app = create_app(Settings(data=tmp_path), Catalog({"fake": entry("fake")}, "fake", Path("models.toml")), FakeEngine)

    async def start() -> None:
        with pytest.raises(ExceptionGroup):  # of the OSError
            async with app.lifespan():
                pass
        await (await Database.open(tmp_path)).close()  # its lock is free

    asyncio.run(start())


def test_a_key_that_is_revoked_while_its_body_arrives_gets_nothing_made(tmp_path: Path) -> None:
    with guarded(tmp_path) as fake, socket.create_connection(("127.0.0.1", fake.port)) as connection:
        made = make_key(fake)
        body = json.dumps({"prompt": "a hat"}).encode()
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {made['key']}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:3])
        eventually(lambda: httpx.get(fake.url + "/health").status_code == 200)  # the head is through by now
        httpx.delete(f"{fake.url}/api/v1/keys/{made['id']}", headers=operator_of(fake))
        connection.sendall(body[3:])
        assert b" 401 " in connection.recv(4096).partition(b"\r\n")[0]
        assert fake.statuses == []
