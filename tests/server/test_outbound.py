"""The client to strangers: decision and connection in one step, and URLs that parsers agree on."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server.certs import TlsFiles, ensure_certificates
from server.errors import ConfigurationError
from server.outbound import Answer, Outbound, OutboundError, read_url, trusted_authorities
from server.targets import RefusedTargetError
from tests.server.receivers import Answer as Script
from tests.server.receivers import Receiver, hang_up, silence, status
from tests.server.ssrf import Recorder

pytestmark = pytest.mark.anyio

CONTEXT = trusted_authorities(None)


async def loopback(_host: str, _port: int) -> Sequence[str]:
    """Resolve every host to this machine."""
    return ["127.0.0.1"]


def get(
    outbound: Outbound, url: str, **changes: Any
) -> contextlib.AbstractAsyncContextManager[Answer]:
    """Begin a GET request with generous limits."""
    limits = {"connect_seconds": 10.0, "silence_seconds": 10.0, **changes}
    return outbound.request("GET", read_url(url), {}, **limits)


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    """Return a client to whom every host is this machine."""
    made = Outbound(loopback, CONTEXT)
    yield made
    await made.close()


async def test_the_body_comes_in_pieces(outbound: Outbound) -> None:
    """Status and headers are there before it."""
    async with Receiver(status(404, "x-note: a")) as receiver:
        async with get(outbound, receiver.url(host="a.example")) as answer:
            assert (answer.status, answer.headers["X-Note"]) == (404, "a")
            assert b"".join([chunk async for chunk in answer.chunks()]) == b"ok"
        (received,) = receiver.received
    assert received.headers == {
        "host": f"a.example:{receiver.port}",
        "accept-encoding": "identity",
    }


async def test_the_decision_is_made_once_for_each_request_and_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No look-up follows it, and no connection outlives its request."""
    asked: list[tuple[str, int]] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    def never(*_arguments: Any, **_options: Any) -> Any:
        raise AssertionError("looked up again")

    async with Receiver() as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", never)
        outbound = Outbound(resolve, CONTEXT)
        for _ in range(2):
            async with get(outbound, receiver.url(host="a.example")):
                pass
        assert asked == [("a.example", receiver.port)] * 2
        assert receiver.connections == 2


@pytest.mark.parametrize("url", ["http://a.example/", "https://a.example/", "http://[2606::1]/"])
async def test_the_gate_hears_the_port_of_the_scheme(url: str) -> None:
    """A refusal there is the caller's to handle, and nothing is connected to."""
    asked: list[tuple[str, int]] = []

    async def refuse(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        raise RefusedTargetError("not that one")

    network = Recorder()
    with pytest.raises(RefusedTargetError, match="not that one"):
        async with get(Outbound(refuse, CONTEXT, network), url):
            pass
    parsed = httpx2.URL(url)
    assert asked == [(parsed.host, 443 if parsed.scheme == "https" else 80)]
    assert network.connected == []


async def test_the_next_address_is_tried() -> None:
    """As long as one does not answer; the last one's failure is told."""
    network = Recorder()

    async def resolve(host: str, _port: int) -> Sequence[str]:
        dead = ["127.0.0.3", "127.0.0.2"]
        return dead if host == "dead.example" else [*dead, "127.0.0.1"]

    outbound = Outbound(resolve, CONTEXT, network)
    async with Receiver() as receiver:
        async with get(outbound, receiver.url(host="living.example")) as answer:
            assert answer.status == 200
        assert network.connected == ["127.0.0.3", "127.0.0.2", "127.0.0.1"]
        with pytest.raises(OutboundError, match="cannot be connected to"):
            async with get(outbound, receiver.url(host="dead.example")):
                pass


async def test_a_name_without_an_address_cannot_be_connected_to() -> None:
    """The gate's own words are kept for the log."""

    async def unknown(_host: str, _port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    with pytest.raises(OutboundError, match="a.example cannot be resolved: .*no such name"):
        async with get(Outbound(unknown, CONTEXT), "http://a.example/"):
            pass


@pytest.mark.parametrize(
    ("script", "why"), [(hang_up, "RemoteProtocolError"), (silence, "ReadTimeout")]
)
async def test_no_answer_is_told_by_its_kind(outbound: Outbound, script: Script, why: str) -> None:
    """A silent server is left after `silence_seconds`."""
    async with Receiver(script) as receiver:
        with pytest.raises(OutboundError, match=f"broke off: {why}"):
            async with get(outbound, receiver.url(), silence_seconds=0.1):
                pass


async def test_a_body_that_breaks_off_is_told(outbound: Outbound) -> None:
    """Half a file is not a file."""

    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    async with Receiver(half) as receiver, get(outbound, receiver.url()) as answer:
        with pytest.raises(OutboundError, match="broke off"):
            assert [chunk async for chunk in answer.chunks()]


async def test_an_error_quotes_nothing_of_the_answer(outbound: Outbound) -> None:
    """It could be the page of a machine that only this one can see."""

    async def secret(writer: asyncio.StreamWriter) -> None:
        writer.write(b"root:x:0:0 secret\r\n\r\n")

    async with Receiver(secret) as receiver:
        with pytest.raises(OutboundError) as error:
            async with get(outbound, receiver.url()):
                pass
    assert "secret" not in str(error.value)


@pytest.fixture
def certificates(tmp_path: Path) -> TlsFiles:
    """Return the certificate of a box, for one name among others."""
    return ensure_certificates(tmp_path / "tls", ["images.example"])


async def test_tls_goes_by_the_name(certificates: TlsFiles) -> None:
    """Although the connection goes to an address; another name of the same address fails."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.certificate_path, certificates.key_path)
    outbound = Outbound(loopback, trusted_authorities(certificates.ca_path))
    async with Receiver(tls=server) as receiver:
        async with get(outbound, receiver.url(host="images.example.")) as answer:
            assert answer.status == 200
        with pytest.raises(OutboundError, match="certificate"):
            async with get(outbound, receiver.url(host="other.example")):
                pass
        assert len(receiver.received) == 1


def test_a_ca_file_adds_to_the_system_s_authorities(certificates: TlsFiles) -> None:
    """A private receiver must not cost the public ones their trust."""
    count = len(CONTEXT.get_ca_certs())
    assert len(trusted_authorities(certificates.ca_path).get_ca_certs()) == count + 1


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_wrong_ca_file_stops_the_start(tmp_path: Path, content: str | None) -> None:
    """Otherwise every request would fail, one by one."""
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match="ca.pem"):
        trusted_authorities(path)


@pytest.mark.parametrize(
    ("text", "host", "target"),
    [
        ("http://a.example", "a.example", b"/"),
        ("HTTPS://A.Example:443/B?c=d#e", "a.example", b"/B?c=d"),
        ("http://a.example:8080/my image.png", "a.example", b"/my%20image.png"),
        ("http://b\u00fccher.example/\u00fc", "xn--bcher-kva.example", b"/%C3%BC"),
        ("http://[2606:4700::1]:81/a%2fb", "2606:4700::1", b"/a%2fb"),
        ("http://a_b.example./@x?u=http://127.0.0.1/@", "a_b.example.", None),
    ],
)
def test_plain_urls_are_read(text: str, host: str, target: bytes | None) -> None:
    """What is sent to whom."""
    url = read_url(text)
    assert url.raw_host == host.encode()
    assert target in (None, url.raw_path)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/b", "http://a.example:81/b"),
        ("c", "http://a.example:81/x/c"),
        ("?q", "http://a.example:81/x/y?q"),
        ("//b.example/c", "http://b.example/c"),
        ("https://b.example", "https://b.example"),
    ],
)
def test_a_redirect_is_read_from_where_it_came(location: str, expected: str) -> None:
    """As browsers do."""
    assert str(read_url(location, httpx2.URL("http://a.example:81/x/y"))) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ftp://a.example", "not an http"),
        ("http:///x", "not an http"),
        ("a.example", "not an http"),
        ("http://user@a.example", "credentials"),
        ("http://a.example\\b", "backslash"),
        ("http://a.example/b\\c", "backslash"),
        ("http://a%2eb.example", "not a host name"),
        ("http://[fe80::1%1]", "not a host name"),
        ("http://a.example:0", "not a port"),
        ("http://a.example:65536", "not a port"),
        ("http://a.example/\r\n", "non-printable"),
    ],
)
def test_what_parsers_differ_about_is_refused(text: str, why: str) -> None:
    """And so is a redirect to it."""
    for base in (None, httpx2.URL("http://b.example/")):
        if why == "not an http" and base and not text.startswith("ftp"):
            continue  # relative to another URL it is one
        with pytest.raises(RefusedTargetError, match=why):
            read_url(text, base)
