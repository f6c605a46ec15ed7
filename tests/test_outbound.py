"""The client with which the server calls out reaches nothing that it should not, and is held up by nobody."""

import ipaddress
import socket
import ssl
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler

import pytest
import trustme

from server.outbound.addresses import Address, AddressRefused, Rules, is_public, parse_url
from server.outbound.client import MAX_ANSWER_BYTES, Outbound, OutboundFailed, Reply, look_up
from tests.receiver import Receiver, Trap, receiving, status

pytestmark = pytest.mark.anyio

HERE = Rules.parse("127.0.0.1")
PUBLIC = "93.184.216.34"
BARE = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""It believes nobody; reading the system's authorities takes longer than these tests."""


@pytest.fixture
def trap() -> Iterator[Trap]:
    trap = Trap()
    yield trap
    trap.close()


class Names:
    """A resolver that gives its answers in turn, the last one again and again."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = [[ipaddress.ip_address(one) for one in answer] for answer in answers]
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        return self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)


async def post(outbound: Outbound, url: str) -> Reply:
    return await outbound.post(url, {"X-Test": "1"}, b"body")


@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "127.0.1", "0", "0.0.0.0", "2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.0x1",
        "017700000001", "0177.0.0.1", "localhost", "LOCALHOST", "localhost.", "[::]", "[::1]", "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:10.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fe80::1%25lo]", "[fe80::1]", "[fc00::1]",
        "[fec0::1]", "[ff02::1]", "[ff0e::1]", "[::ffff:0:127.0.0.1]", "[5f00::1]", "[3fff::1]", "[100::1]", "10.0.0.1",
        "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.0.9", "192.88.99.1",
        "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "0.1.2.3",
        "user@127.0.0.1", "user:pass@127.0.0.1", "example.org@127.0.0.1", "@127.0.0.1", "example.org\\@127.0.0.1",
        "①②⑦.0.0.1", "１２７.0.0.1", "127。0。0。1", "localhost\u3002", "bücher.example", "127.0.0.1%00.example.org",
        "%31%32%37.0.0.1", "127.0.0.1 .example.org", "127.0.0.1\t", "127.0.0.1\r\nHost: x", "a..b", "." * 5, "a" * 254,
        "x" * 64 + ".example.org", "[::1", "::1", "", "[v1.a]",
    ],
)  # fmt: skip
async def test_nothing_here_or_nearby_is_ever_connected_to(trap: Trap, scheme: str, host: str) -> None:
    outbound = Outbound(Rules(ports={trap.port}), context=BARE)
    for url in (f"{scheme}://{host}:{trap.port}/", f"{scheme}://{host}:{trap.port}/?url=https://example.org"):
        with pytest.raises(AddressRefused):
            await outbound.admit(url)
        with pytest.raises(AddressRefused):
            await post(outbound, url)
    assert not trap.touched()


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "//127.0.0.1/", "https:", "https:///path", "https:127.0.0.1", "file:///etc/passwd", "gopher://1.1.1.1",
        "ftp://1.1.1.1", "HTTPS", "https://1.1.1.1:0", "https://1.1.1.1:65536", "https://1.1.1.1:x", "https://1.1.1.1:-1",
        "https://1.1.1.1/#fragment", "https://1.1.1.1/a b", "https://1.1.1.1/\n", "https://1.1.1.1/" + "a" * 2000,
        "https://1.1.1.1\\.example.org", "javascript:alert(1)", "data:,x",
    ],
)  # fmt: skip
async def test_what_is_no_url_of_a_webhook_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused) as refused:
        await Outbound(Rules()).admit(url)
    assert refused.value.field == "url" and str(refused.value).startswith("url: ")


@pytest.mark.parametrize("port", [1, 22, 25, 80, 6379, 8000, 8080, 65535])
async def test_ports_of_other_services_are_refused(port: int) -> None:
    with pytest.raises(AddressRefused, match=f"its port must be 443 or 8443, not {port}"):
        await Outbound(Rules(), Names([PUBLIC])).admit(f"https://hooks.example.org:{port}/")


async def test_plain_http_is_for_hosts_of_ones_own() -> None:
    with pytest.raises(AddressRefused, match="https://; DARKROOM_WEBHOOK_HOSTS can allow"):
        await Outbound(Rules(), Names([PUBLIC])).admit("http://hooks.example.org:443/")


@pytest.mark.parametrize("addresses", [[PUBLIC, "127.0.0.1"], ["::1", PUBLIC], ["10.0.0.1"], [PUBLIC, "64:ff9b::1"]])
async def test_every_address_of_a_host_must_be_public(addresses: list[str]) -> None:
    with pytest.raises(AddressRefused, match="no address of the public internet"):
        await Outbound(Rules(), Names(addresses)).admit("https://hooks.example.org/")


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::200e"])
async def test_public_addresses_are_let_pass(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    place, addresses = await Outbound(Rules(), Names([address])).admit("https://Hooks.Example.org/a?b=c")
    assert (place.host, place.port, place.target) == ("hooks.example.org", 443, "/a?b=c")
    assert [str(one) for one in addresses] == [address]


async def test_a_name_that_turns_to_loopback_is_refused_at_the_next_send(trap: Trap) -> None:
    names = Names([PUBLIC], ["127.0.0.1"])
    outbound = Outbound(Rules(ports={trap.port}), names)
    await outbound.admit(f"https://hooks.example.org:{trap.port}/")
    with pytest.raises(AddressRefused):
        await post(outbound, f"https://hooks.example.org:{trap.port}/")
    assert not trap.touched()


async def test_what_is_connected_to_is_what_was_checked() -> None:
    """The name is looked up once a request: one that turns in between turns too late."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    with receiving() as receiver:
        outbound = Outbound(Rules.parse("127.0.0.1/32"), names)
        assert (await post(outbound, f"http://hooks.test:{receiver.port}/a?b=c")).status == 204
        (request,) = receiver.received
        assert (request.path, request.body, request.headers["x-test"]) == ("/a?b=c", b"body", "1")
        assert request.headers["host"] == f"hooks.test:{receiver.port}"
        assert names.asked == ["hooks.test"]
        with pytest.raises(AddressRefused):
            await post(outbound, f"http://hooks.test:{receiver.port}/")
        assert len(receiver.received) == 1


async def test_the_next_address_is_tried_where_one_is_not_there() -> None:
    with receiving() as receiver:
        outbound = Outbound(Rules.parse("127.0.0.0/8"), Names(["127.0.0.2", "127.0.0.1"]))
        assert (await post(outbound, f"http://hooks.test:{receiver.port}/")).status == 204


async def test_a_redirection_is_an_answer_and_not_followed(trap: Trap) -> None:
    with receiving(status(302, Location=f"http://127.0.0.1:{trap.port}/")) as receiver:
        reply = await post(Outbound(HERE), receiver.url)
    assert reply.status == 302 and reply.headers["location"] == f"http://127.0.0.1:{trap.port}/"
    assert not trap.touched()


async def test_proxies_and_credentials_of_the_environment_are_not_used(
    trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://user:password@127.0.0.1:{trap.port}")
    with receiving() as receiver:
        assert (await post(Outbound(HERE), receiver.url)).status == 204
    assert "authorization" not in receiver.received[0].headers
    assert not trap.touched()


async def test_an_endpoint_that_never_answers_is_given_up() -> None:
    with receiving() as receiver:
        receiver.answers = [receiver.never]
        with pytest.raises(OutboundFailed, match=r"within 0\.2 seconds"):
            await post(Outbound(HERE, seconds=0.2), receiver.url)


async def test_an_answer_that_never_ends_is_given_up() -> None:
    with receiving() as receiver:

        def drip(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            while not receiver.leaving.wait(0.01):
                handler.wfile.write(b".")
                handler.wfile.flush()

        receiver.answers = [drip]
        with pytest.raises(OutboundFailed, match=r"within 0\.3 seconds"):
            await post(Outbound(HERE, seconds=0.3), receiver.url)


async def test_headers_that_never_end_are_given_up() -> None:
    with receiving() as receiver:

        def chatter(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not receiver.leaving.is_set():
                handler.wfile.write(b"X: " + b"y" * 1000 + b"\r\n")

        receiver.answers = [chatter]
        with pytest.raises(OutboundFailed):
            await post(Outbound(HERE), receiver.url)


async def test_of_a_gigabyte_only_the_beginning_is_read() -> None:
    sent = []

    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(2**30))
        handler.end_headers()
        for _ in range(2**10):
            handler.wfile.write(bytes(2**20))
            sent.append(2**20)

    with receiving(flood) as receiver:
        assert (await post(Outbound(HERE), receiver.url)).status == 200
    assert sum(sent) < 2**26, "no more than the sockets' buffers hold"
    assert MAX_ANSWER_BYTES < 2**20


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"])
async def test_an_answer_that_is_none_is_a_failure(answer: bytes) -> None:
    with receiving(lambda handler: handler.wfile.write(answer) and None) as receiver, pytest.raises(OutboundFailed):
        await post(Outbound(HERE), receiver.url)


async def test_a_port_where_nobody_listens_is_a_failure() -> None:
    with receiving() as receiver:
        url = receiver.url
    with pytest.raises(OutboundFailed, match="connection failed"):
        await post(Outbound(HERE), url)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def speaking_tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def tls_client(authority: trustme.CA | None) -> Outbound:
    rules = Rules.parse("127.0.0.1/32")
    return Outbound(rules, Names(["127.0.0.1"]), context=trusting(authority) if authority else None)


def at(receiver: Receiver, host: str) -> str:
    return f"https://{host}:{receiver.port}/"


def refused_for_its_certificate() -> pytest.RaisesExc[OutboundFailed]:
    return pytest.raises(OutboundFailed, match="certificate")


async def test_tls_is_spoken_with_the_host_and_not_with_its_address(authority: trustme.CA) -> None:
    with receiving(context=speaking_tls(authority, "hooks.test")) as receiver:
        assert (await post(tls_client(authority), at(receiver, "hooks.test"))).status == 204
        assert receiver.names == ["hooks.test"]
        assert receiver.received[0].headers["host"] == f"hooks.test:{receiver.port}"


async def test_a_certificate_must_be_of_the_host(authority: trustme.CA) -> None:
    with receiving(context=speaking_tls(authority, "other.test")) as receiver, refused_for_its_certificate():
        await post(tls_client(authority), at(receiver, "hooks.test"))
    assert not receiver.received


async def test_a_certificate_must_come_from_a_known_authority(authority: trustme.CA) -> None:
    with receiving(context=speaking_tls(authority, "hooks.test")) as receiver, refused_for_its_certificate():
        await post(tls_client(None), at(receiver, "hooks.test"))
    assert not receiver.received


@pytest.mark.parametrize(
    ("setting", "url", "allowed"),
    [
        ("hooks.lan", "http://hooks.lan:9000/", True),
        ("hooks.lan", "https://HOOKS.lan/", True),
        ("hooks.lan", "http://x.hooks.lan/", False),
        ("hooks.lan:9000", "http://hooks.lan:9000/", True),
        ("hooks.lan:9000", "http://hooks.lan:9001/", False),
        ("hooks.lan:443", "https://hooks.lan/", True),
        ("a.lan, hooks.lan ,", "http://hooks.lan/", True),
        ("10.0.0.0/8", "http://hooks.lan:1234/", True),
        ("10.0.0.7/32,fd00::/8", "http://hooks.lan/", True),
        ("10.1.0.0/16", "http://hooks.lan/", False),
        ("10.0.0.7", "http://hooks.lan/", False),
        ("10.0.0.7", "http://10.0.0.7/", True),
        ("[::1]:9000", "http://[::1]:9000/", True),
        ("::1", "http://[0::1]:9000/", True),
        ("[::1]:9000", "http://[::1]:9001/", False),
    ],
)
async def test_the_operator_names_hosts_of_the_lan(setting: str, url: str, allowed: bool) -> None:
    outbound = Outbound(Rules.parse(setting), Names(["10.0.0.7"]))
    if allowed:
        await outbound.admit(url)
    else:
        with pytest.raises(AddressRefused):
            await outbound.admit(url)


@pytest.mark.parametrize("setting", ["10.0.0.0/99", "http://x", "a b", "x:port", "/", "x/y", "10.0.0.1/8", "u@h"])
def test_a_setting_that_names_nothing_is_refused(setting: str) -> None:
    with pytest.raises(ValueError):
        Rules.parse(setting)


async def test_the_system_s_own_resolver_is_asked() -> None:
    assert ipaddress.ip_address("127.0.0.1") in await look_up("localhost", 80)
    with pytest.raises(OSError):
        await look_up("nowhere.invalid", 80)


async def test_a_resolver_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: receiver.leaving.wait(60) and [])
        with pytest.raises(AddressRefused, match="cannot be found"):
            await Outbound(Rules(), seconds=0.1).admit("https://hooks.example.org/")


def test_a_place_says_its_host_as_http_writes_it() -> None:
    written = {
        "https://a.example/": "a.example",
        "https://a.example:8443": "a.example:8443",
        "http://[::1]:80/": "[::1]",
        "https://[::1]:80/": "[::1]:80",
    }
    assert {url: parse_url(url).host_header for url in written} == written
