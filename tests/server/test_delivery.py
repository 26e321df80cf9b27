"""One delivery attempt against receivers that are slow, hostile, redirecting or not trusted."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from server.certs import TlsFiles, ensure_certificates
from server.delivery import Courier, Result, Verdict, judge_status
from server.outbound import Outbound, Resolve, trusted_authorities
from server.targets import AllowList, RefusedTargetError
from tests.server.receivers import (
    Answer,
    Receiver,
    drip,
    dripping_body,
    endless_body,
    hang_up,
    silence,
    status,
)

pytestmark = pytest.mark.anyio

MakeCourier = Callable[..., Courier]
BODY = b'{"status": "OK"}'


async def loopback(_host: str, _port: int) -> Sequence[str]:
    """Resolve every host to this machine."""
    return ["127.0.0.1"]


@pytest.fixture
async def courier() -> AsyncIterator[MakeCourier]:
    """Return a function that makes a courier; by default every host is this machine."""
    async with AsyncExitStack() as stack:

        def make(
            resolve: Resolve = loopback,
            ca_file: Path | None = None,
            attempt_seconds: float = 15,
        ) -> Courier:
            made = Courier(Outbound(resolve, trusted_authorities(ca_file)), attempt_seconds)
            stack.push_async_callback(made.close)
            return made

        yield make


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.mark.parametrize(
    ("codes", "result"),
    [
        ([200, 201, 202, 204, 206, 299], Result.DELIVERED),
        ([300, 301, 302, 303, 304, 307, 308], Result.ABANDONED),
        ([400, 401, 403, 404, 405, 410, 413, 422, 451], Result.ABANDONED),
        ([408, 425, 429], Result.FAILED),
        ([500, 501, 502, 503, 504, 599], Result.FAILED),
        ([600, 999], Result.FAILED),
    ],
)
def test_the_status_decides(codes: list[int], result: Result) -> None:
    """Final answers end it, those of the moment are asked again, and both say what it was."""
    for code in codes:
        reason = None if result is Result.DELIVERED else f"answered {code}"
        assert judge_status(code) == Verdict(result, reason)


async def test_what_is_sent_is_what_arrives(courier: MakeCourier) -> None:
    """A POST to the target's path and query, under its own name, with our headers and body."""
    async with Receiver() as receiver:
        url = receiver.url("/a%20b?c=d&e=%2F#part", host="hook.example")
        verdict = await courier().deliver(url, {"X-Fal-Webhook-User-Id": "local"}, BODY)
        (received,) = receiver.received
    assert verdict == Verdict(Result.DELIVERED)
    assert received.target == "/a%20b?c=d&e=%2F"
    assert received.body == BODY
    assert received.headers["host"] == f"hook.example:{receiver.port}"
    assert received.headers["x-fal-webhook-user-id"] == "local"
    assert received.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(courier: MakeCourier, code: int) -> None:
    """Wherever it points, nobody is there but the first receiver."""
    async with (
        Receiver() as trap,
        Receiver(status(code, f"location: {trap.url()}")) as receiver,
    ):
        verdict = await courier().deliver(receiver.url(), {}, BODY)
        assert (receiver.connections, trap.connections) == (1, 0)
    assert verdict == Verdict(Result.ABANDONED, f"answered {code}")


@pytest.mark.parametrize("answer", [silence, drip])
async def test_a_slow_receiver_is_left(courier: MakeCourier, answer: Answer) -> None:
    """The limit is for the whole attempt: bytes that trickle in do not stretch it."""
    async with Receiver(answer) as receiver:
        begun = time.monotonic()
        verdict = await courier(attempt_seconds=1).deliver(receiver.url(), {}, BODY)
        assert time.monotonic() - begun < 3
    assert verdict == Verdict(Result.FAILED, "no answer in 1 seconds")


@pytest.mark.parametrize("answer", [endless_body, dripping_body])
async def test_a_body_without_an_end_is_left(courier: MakeCourier, answer: Answer) -> None:
    """The status was 2xx, so it is delivered; of the body little is read, and not for long."""
    async with Receiver(answer) as receiver:
        begun = time.monotonic()
        verdict = await courier().deliver(receiver.url(), {}, BODY)
        assert time.monotonic() - begun < 4
    assert verdict == Verdict(Result.DELIVERED)


async def test_a_broken_connection_may_be_tried_again(courier: MakeCourier) -> None:
    """Nobody listening, and a hang-up before the answer."""
    async with Receiver(hang_up) as receiver:
        verdict = await courier().deliver(receiver.url(), {}, BODY)
        assert verdict == Verdict(Result.FAILED, "broke off: RemoteProtocolError")
    verdict = await courier().deliver(f"http://127.0.0.1:{free_port()}", {}, BODY)
    assert verdict.result is Result.FAILED
    assert verdict.reason is not None
    assert verdict.reason.startswith("cannot be connected to")


async def test_nothing_that_the_receiver_says_is_kept(courier: MakeCourier) -> None:
    """It could be the page of a machine that only this one can see."""

    async def secret(writer: asyncio.StreamWriter) -> None:
        writer.write(b"root:x:0:0 secret\r\n\r\n")

    for answer in (secret, status(404, "x-note: secret")):
        async with Receiver(answer) as receiver:
            verdict = await courier().deliver(receiver.url(), {}, BODY)
        assert verdict.result is not Result.DELIVERED
        assert "secret" not in str(verdict)


async def test_a_refused_target_sees_no_connection(courier: MakeCourier) -> None:
    """The empty allow-list, and one that is about others, let nothing into this machine."""
    async with Receiver() as trap:
        for entries in ([], ["hook.example", "10.0.0.0/8"]):
            allowed = AllowList.parse("FLUX2_WEBHOOK_ALLOW", entries)
            for host in ("127.0.0.1", "localhost", "0x7f000001", "[::ffff:127.0.0.1]", "127.1"):
                url = trap.url(host=host)
                verdict = await courier(allowed.resolve).deliver(url, {}, BODY)
                assert verdict.result is Result.ABANDONED
                assert verdict.reason is not None
                assert "FLUX2_WEBHOOK_ALLOW" in verdict.reason
        assert trap.connections == 0


async def test_the_judged_address_is_the_connected_one(courier: MakeCourier) -> None:
    """A second look-up could give another address; there is none."""
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async with Receiver() as receiver:
        url = receiver.url(host="rebinding.invalid")
        verdict = await courier(resolve).deliver(url, {}, BODY)
    assert verdict.result is Result.DELIVERED
    assert asked == ["rebinding.invalid"]


async def test_the_next_address_is_tried(courier: MakeCourier) -> None:
    """A name with a dead address and a living one is reached."""

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.3", "127.0.0.1"]

    async with Receiver(host="127.0.0.1") as receiver:
        url = receiver.url(host="two.example")
        assert (await courier(resolve).deliver(url, {}, BODY)).result is Result.DELIVERED


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "//hook.example",
        "ftp://hook.example",
        "file:///etc/passwd",
        "unix:///run/x",
        "http://",
        "http:///x",
        "http://[::1",
        "http://hook.example:0",
        "http://hook.example:99999",
        "http://hook.example:-1",
        "http://hook.example:port",
        "http://a\r\nb",
        "http://\u2460\u2461\u2466.0.0.1",
        "http://user:password@hook.example",
        "http://hook.example\\@evil.example",
        pytest.param("https://hook.example/" + "a" * 70_000, id="long"),
        pytest.param("\ud800", id="surrogate"),
    ],
)
async def test_what_is_no_http_url_is_refused(courier: MakeCourier, url: str) -> None:
    """Trying again cannot help; nothing is asked of the resolver."""

    async def resolve(host: str, _port: int) -> Sequence[str]:
        raise AssertionError(host)

    verdict = await courier(resolve).deliver(url, {}, BODY)
    assert verdict.result is Result.ABANDONED


async def test_a_name_that_does_not_resolve_may_be_tried_again(courier: MakeCourier) -> None:
    """The name server may be down."""

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    verdict = await courier(resolve).deliver("http://hook.example", {}, BODY)
    assert verdict.result is Result.FAILED


async def test_the_resolver_is_in_the_time_limit_too(courier: MakeCourier) -> None:
    """A name server that does not answer holds no slot for long."""

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        raise RefusedTargetError

    verdict = await courier(resolve, attempt_seconds=0.2).deliver("http://hook.example", {}, BODY)
    assert verdict.result is Result.FAILED


async def test_cookies_and_proxies_are_not_used(
    courier: MakeCourier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One receiver's cookie would reach another at the same address; a proxy sees everything."""
    async with Receiver() as trap, Receiver(status(200, "set-cookie: a=b; Path=/")) as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, trap.url())
        made = courier()
        for host in ("one.example", "two.example"):
            await made.deliver(receiver.url(host=host), {}, BODY)
        assert [("cookie" in item.headers) for item in receiver.received] == [False, False]
        assert receiver.connections == 2  # one each: TLS has checked only one of the names
        assert trap.connections == 0


@pytest.fixture
def certificates(tmp_path: Path) -> TlsFiles:
    """Return the certificate of a box, for localhost among others."""
    return ensure_certificates(tmp_path / "tls", ["hook.example"])


@pytest.mark.parametrize(
    ("host", "trusted", "result"),
    [
        ("hook.example", True, Result.DELIVERED),
        ("hook.example.", True, Result.DELIVERED),
        ("127.0.0.1", True, Result.DELIVERED),
        ("other.example", True, Result.FAILED),
        ("hook.example", False, Result.FAILED),
    ],
)
async def test_tls_is_checked_for_the_name_in_the_url(
    courier: MakeCourier, certificates: TlsFiles, host: str, trusted: bool, result: Result
) -> None:
    """Although the connection goes to an address; the CA file is trusted beside the system's."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.certificate_path, certificates.key_path)
    async with Receiver(tls=server) as receiver:
        made = courier(ca_file=certificates.ca_path if trusted else None)
        verdict = await made.deliver(receiver.url(host=host), {}, BODY)
        assert verdict.result is result
        assert len(receiver.received) == (result is Result.DELIVERED)
        if result is Result.FAILED:
            assert verdict.reason is not None
            assert "certificate" in verdict.reason
