"""Downloads from servers that are honest, slow, endless, lying or somewhere else."""

import asyncio
import contextlib
import gzip
import json
import resource
import socket
import ssl
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from server.addresses import Address
from server.app import make_fetcher as make_app_fetcher
from server.certs import ensure_certificates
from server.fetch import FAILURE_MESSAGE, PIECE_BYTES, Fetcher, FetchError
from server.outbound import Outbound, trusted_authorities
from server.settings import Settings
from server.targets import AllowList
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
from tests.server.ssrf import addresses

pytestmark = pytest.mark.anyio

MakeFetcher = Callable[..., Fetcher]
MIB = 1024 * 1024
LIMIT = 2_000_000
CONTEXT = trusted_authorities(None)


async def every_name_is_here(name: str) -> list[Address]:
    """Answer for all names with this machine, and for addresses with themselves."""
    with contextlib.suppress(ValueError):
        return addresses([name])
    return addresses(["127.0.0.1"])


@pytest.fixture
async def fetcher() -> AsyncIterator[MakeFetcher]:
    """Return a function that makes a fetcher that may go to this machine and to `*.example`."""
    async with AsyncExitStack() as stack:

        def make(
            seconds: float = 20, failure_seconds: float = 0, context: ssl.SSLContext = CONTEXT
        ) -> Fetcher:
            allowed = AllowList.parse("X", ["127.0.0.0/8", "*.example"], every_name_is_here)
            outbound = Outbound(allowed.resolve, context)
            made = Fetcher(outbound, LIMIT, seconds, failure_seconds)
            stack.push_async_callback(made.close)
            return made

        yield make


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return a path for the file."""
    return tmp_path / "image"


def answer(body: bytes, *headers: str, code: int = 200, length: int | None = None) -> Answer:
    """Make an answer with this body, and perhaps another length in its head."""

    async def send(writer: asyncio.StreamWriter) -> None:
        size = len(body) if length is None else length
        lines = [f"HTTP/1.1 {code} Words", f"content-length: {size}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()
        if length is not None:
            writer.close()

    return send


def chunked(pieces: Iterator[bytes], *headers: str) -> Answer:
    """Make an answer whose length is not told."""

    async def send(writer: asyncio.StreamWriter) -> None:
        lines = ["HTTP/1.1 200 OK", "transfer-encoding: chunked", *headers, "", ""]
        writer.write("\r\n".join(lines).encode())
        for piece in pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    return send


async def lie(writer: asyncio.StreamWriter) -> None:
    """Announce one byte and send a GiB."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n")
    for _ in range(1024):
        writer.write(bytes(MIB))
        await writer.drain()


def zeros(size_bytes: int) -> Iterator[bytes]:
    """Yield so many zero bytes, compressed by a thousand."""
    press = zlib.compressobj(9, wbits=31)
    for _ in range(size_bytes // MIB):
        yield from filter(None, [press.compress(bytes(MIB))])
    yield press.flush()


async def fail(fetcher: Fetcher, url: str, target: Path) -> FetchError:
    """Return the error of a download, which has left no file behind."""
    with pytest.raises(FetchError) as error:
        await fetcher.fetch(url, target)
    assert not target.exists()
    return error.value


async def test_a_file_is_saved(fetcher: MakeFetcher, target: Path) -> None:
    """Byte by byte, asked for under an honest name, with nothing that tells who asked."""
    body = bytes(range(256)) * 300
    async with Receiver(answer(body)) as receiver:
        await fetcher().fetch(receiver.url("/a b.png?c=d#e", host="images.example"), target)
        (received,) = receiver.received
    assert target.read_bytes() == body
    assert received.target == "/a%20b.png?c=d"
    assert received.headers["user-agent"].startswith("Mozilla/5.0 (compatible; flux2-serve/")
    assert {name: text for name, text in received.headers.items() if name != "user-agent"} == {
        "host": f"images.example:{receiver.port}",
        "accept": "image/*,*/*;q=0.8",
        "accept-encoding": "identity",
    }


@pytest.mark.parametrize(
    ("header", "press"),
    [
        ("identity", bytes),
        ("", bytes),
        ("gzip", gzip.compress),
        ("X-GZIP", gzip.compress),
        ("deflate", zlib.compress),
    ],
)
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, LIMIT])
async def test_compressed_files_are_unpacked(
    fetcher: MakeFetcher, target: Path, header: str, press: Callable[[bytes], bytes], size: int
) -> None:
    """Some servers compress although they were asked not to; the limit is for what is inside."""
    async with Receiver(answer(press(bytes(size)), f"content-encoding: {header}")) as receiver:
        await fetcher().fetch(receiver.url(), target)
    assert target.read_bytes() == bytes(size)


@pytest.mark.parametrize(
    "script",
    [
        answer(gzip.compress(b"a" * 1000)[:-9], "content-encoding: gzip"),
        answer(b"a" * 1000, "content-encoding: gzip"),
        answer(b"", "content-encoding: gzip"),
        answer(gzip.compress(b"a"), "content-encoding: br"),
        answer(gzip.compress(gzip.compress(b"a")), "content-encoding: gzip, gzip"),
        answer(b"a" * 10, length=11),
        answer(b"a", length=10**30),
        answer(b"a", "content-length: 7"),
        answer(b"a", code=204),
        answer(b"a", code=206),
        answer(b"secret", code=404),
        answer(b"secret", code=500),
        answer(b"a", code=302),
        answer(b"a", "location: http://[", code=302),
        answer(b"a", "upgrade: x", "connection: upgrade", code=101),
        hang_up,
    ],
)
async def test_every_failure_has_the_same_words(
    fetcher: MakeFetcher, target: Path, script: Answer
) -> None:
    """What went wrong would tell the caller what is there."""
    async with Receiver(script) as receiver:
        error = await fail(fetcher(), receiver.url(), target)
    assert (error.error_type, str(error), error.ctx) == (
        "file_download_error",
        "Failed to download the file. Please check if the URL is accessible and try again.",
        None,
    )


@pytest.mark.parametrize(
    "script",
    [
        answer(bytes(LIMIT + 1)),
        answer(b"", length=LIMIT + 1),
        answer(gzip.compress(bytes(LIMIT + 1)), "content-encoding: gzip"),
        chunked(iter([bytes(LIMIT), b"a"])),
        chunked(zeros(64 * MIB), "content-encoding: gzip"),
        endless_body,
    ],
)
async def test_a_file_above_the_limit_is_refused(
    fetcher: MakeFetcher, target: Path, script: Answer
) -> None:
    """By its announced length, or as soon as so much has come."""
    async with Receiver(script) as receiver:
        error = await fail(fetcher(), receiver.url(), target)
    assert (error.error_type, str(error), error.ctx) == (
        "file_too_large",
        "File too large",
        {"max_size": LIMIT},
    )


async def test_a_server_may_send_more_than_it_says(fetcher: MakeFetcher, target: Path) -> None:
    """What follows belongs to no file."""
    async with Receiver(lie) as receiver:
        await fetcher().fetch(receiver.url(), target)
    assert target.read_bytes() == b"\0"


@pytest.mark.parametrize("script", [silence, drip, dripping_body])
async def test_a_slow_server_is_left(fetcher: MakeFetcher, target: Path, script: Answer) -> None:
    """The limit is for the whole download: bytes that trickle in do not stretch it."""
    async with Receiver(script) as receiver:
        begun = time.monotonic()
        error = await fail(fetcher(seconds=0.5), receiver.url(), target)
        assert time.monotonic() - begun < 5
    assert str(error) == FAILURE_MESSAGE


async def test_a_silent_server_is_left_sooner(
    fetcher: MakeFetcher, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first byte has a limit of its own."""
    monkeypatch.setattr("server.fetch.SILENCE_SECONDS", 0.1)
    async with Receiver(silence) as receiver:
        error = await fail(fetcher(seconds=60), receiver.url(), target)
    assert str(error.__cause__) == "broke off: ReadTimeout"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed(fetcher: MakeFetcher, target: Path, code: int) -> None:
    """Without a cookie or a word of where they came from; the fourth is one too many."""
    hops = [
        status(code, f"location: {where}", "set-cookie: a=b; Path=/")
        for where in ("/two", "?three", "//127.0.0.1:{port}/four")
    ]
    async with Receiver(answer(b"end")) as last:
        final = status(code, f"location: {last.url('/four')}", "set-cookie: a=b; Path=/")
        async with Receiver(*hops[:2], final) as receiver:
            await fetcher().fetch(receiver.url("/one"), target)
            paths = [item.target for item in (*receiver.received, *last.received)]
        assert paths == ["/one", "/two", "/two?three", "/four"]
        for item in (*receiver.received, *last.received):
            assert not {"cookie", "referer", "authorization"} & set(item.headers)
    assert target.read_bytes() == b"end"
    async with Receiver(status(code, "location: /again")) as receiver:
        target.unlink()
        error = await fail(fetcher(), receiver.url(), target)
        assert len(receiver.received) == 4
    assert str(error) == FAILURE_MESSAGE


async def test_a_redirect_never_leaves_tls(
    fetcher: MakeFetcher, target: Path, tmp_path: Path
) -> None:
    """A URL that was safe from eavesdroppers stays so; to another TLS server it may lead."""
    certificates = ensure_certificates(tmp_path / "tls", ["a.example", "b.example"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.certificate_path, certificates.key_path)
    made = fetcher(context=trusted_authorities(certificates.ca_path))
    async with Receiver() as plain, Receiver(answer(b"safe"), tls=server) as safe:
        for end, fetched in ((plain.url(), False), (safe.url(host="b.example"), True)):
            async with Receiver(status(302, f"location: {end}"), tls=server) as receiver:
                url = receiver.url(host="a.example")
                if fetched:
                    await made.fetch(url, target)
                else:
                    await fail(made, url, target)
        assert plain.connections == 0
    assert target.read_bytes() == b"safe"


async def test_refused_closed_and_answered_are_told_alike(
    fetcher: MakeFetcher, target: Path
) -> None:
    """The same words, and none of them before the least time that a failure takes."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        closed = bound.getsockname()[1]
    made = fetcher(failure_seconds=0.2)
    async with Receiver(answer(b"secret", code=403)) as receiver:
        urls = [
            "http://10.0.0.1/",
            f"http://127.0.0.1:{closed}/",
            receiver.url(),
            "http://10.0.0.1:22/",
            "file:///etc/passwd",
            "https://images.example/" + "a" * 2048,
        ]
        for url in urls:
            begun = time.monotonic()
            error = await fail(made, url, target)
            assert time.monotonic() - begun >= 0.2
            assert (error.error_type, str(error)) == ("file_download_error", FAILURE_MESSAGE)


async def test_the_log_has_the_reason_and_no_secret(fetcher: MakeFetcher, target: Path) -> None:
    """The operator sees where it failed; queries of signed URLs are keys."""
    async with Receiver(answer(b"page", code=403)) as receiver:
        with capture_logs() as logs:
            await fail(fetcher(), receiver.url("/path?signature=key"), target)
            await fail(fetcher(), "http://user:key@images.example/", target)
            await fail(fetcher(), "http://10.0.0.1/?signature=key", target)
    assert [(line["host"], line["reason"]) for line in logs] == [
        ("127.0.0.1", "answered 403"),
        (None, "credentials in a URL"),
        ("10.0.0.1", "10.0.0.1 is not in X: 10.0.0.1 is private"),
    ]
    assert "key" not in str(logs)


async def test_a_cancelled_download_leaves_nothing(fetcher: MakeFetcher, target: Path) -> None:
    """Neither a file nor a connection."""
    closed = asyncio.Event()

    async def half(writer: asyncio.StreamWriter) -> None:
        try:
            await dripping_body(writer)
        finally:
            closed.set()

    async with Receiver(half) as receiver:
        download = asyncio.create_task(fetcher().fetch(receiver.url(), target))
        while not target.exists():  # noqa: ASYNC110  (the file system has no event to wait for)
            await asyncio.sleep(0.001)
        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download
        assert not target.exists()
        async with asyncio.timeout(10):
            await closed.wait()


async def test_a_full_disk_is_not_the_caller_s_fault(fetcher: MakeFetcher, target: Path) -> None:
    """It is told as what it is, so that the request can be tried again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with Receiver(answer(bytes(LIMIT))) as receiver:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT // 2, hard))
        try:
            with pytest.raises(OSError, match="File too large"):  # the kernel's words
                await fetcher().fetch(receiver.url(), target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not target.exists()


async def test_the_settings_decide(make_settings: Callable[..., Settings], target: Path) -> None:
    """By default nothing private is reached; what is listed is, and the log says so at start."""
    async with Receiver(answer(b"12345")) as receiver:
        default = make_app_fetcher(make_settings())
        await fail(default, receiver.url(), target)
        assert receiver.connections == 0
        with capture_logs() as logs:
            listed = make_app_fetcher(make_settings(fetch_allow="127.0.0.1", fetch_limit_bytes=5))
        assert [(line["setting"], line["entries"]) for line in logs] == [
            ("FLUX2_FETCH_ALLOW", ("127.0.0.1",))
        ]
        await listed.fetch(receiver.url(), target)
        assert target.read_bytes() == b"12345"
        target.unlink()
        small = make_app_fetcher(make_settings(fetch_allow="127.0.0.1", fetch_limit_bytes=4))
        assert (await fail(small, receiver.url(), target)).ctx == {"max_size": 4}
        for made in (default, listed, small):
            await made.close()


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (endless_body, "file_too_large"),
        (chunked(zeros(1024 * MIB), "content-encoding: gzip"), "file_too_large"),
        (lie, "fetched"),
        (dripping_body, "file_download_error"),
    ],
    ids=["endless", "bomb", "lying", "drip"],
)
async def test_no_server_takes_much_memory(target: Path, script: Answer, outcome: str) -> None:
    """50 MiB are allowed and a GiB is sent: the growth stays under 40 MiB."""
    async with Receiver(script) as receiver:
        command = [sys.executable, "-m", "tests.server.fetch_child", receiver.url(), str(target)]
        child = await asyncio.create_subprocess_exec(
            *command, str(50 * MIB), "1", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await child.communicate()
    told: dict[str, Any] = json.loads(output.splitlines()[-1])
    assert told["outcome"] == outcome
    assert told["growth_bytes"] < 40 * MIB
