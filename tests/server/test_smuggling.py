"""Request smuggling: where one request ends is never a matter of opinion.

Each shape hides a second request where a lenient proxy in front might not see one. Either the
whole is refused, or the first request is taken with exactly the body that the standard says.
"""

from collections.abc import AsyncIterator

import pytest

from tests.server.raw_http import Box

pytestmark = pytest.mark.anyio

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: box\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(HIDDEN)
AS_CHUNK = b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\n\r\n"


def post(headers: bytes, body: bytes, line: bytes = b"POST /first HTTP/1.1\r\n") -> bytes:
    """Write a request with these lines and this body."""
    return line + b"Host: box\r\n" + headers + b"\r\n" + body


REFUSED = {
    "both lengths, length first": post(LENGTH + CHUNKED, b"0\r\n\r\n" + HIDDEN),
    "both lengths, chunked first": post(CHUNKED + LENGTH, b"0\r\n\r\n" + HIDDEN),
    "two lengths": post(b"Content-Length: 0\r\n" + LENGTH, HIDDEN),
    "two lengths in one": post(b"Content-Length: 0, 35\r\n", HIDDEN),
    "length with a sign": post(b"Content-Length: +35\r\n", HIDDEN),
    "negative length": post(b"Content-Length: -1\r\n", HIDDEN),
    "length in hex": post(b"Content-Length: 0x23\r\n", HIDDEN),
    "length with a letter": post(b"Content-Length: 0a\r\n", HIDDEN),
    "length with a space inside": post(b"Content-Length: 3 8\r\n", HIDDEN),
    "length beyond 64 bits": post(b"Content-Length: 18446744073709551616\r\n", HIDDEN),
    "empty length": post(b"Content-Length: \r\n", HIDDEN),
    "length with an underscore": post(b"Content-Length: 3_8\r\n", HIDDEN),
    "space before the colon": post(b"Content-Length : 35\r\n", HIDDEN),
    "tab before the colon": post(b"Content-Length\t: 35\r\n", HIDDEN),
    "space before the name": post(b" Content-Length: 35\r\n", HIDDEN),
    "folded header": post(b"A: b\r\n Content-Length: 35\r\n", HIDDEN),
    "folded coding": post(b"Transfer-Encoding:\r\n chunked\r\n", AS_CHUNK),
    "no colon": post(b"Content-Length\r\n", HIDDEN),
    "empty name": post(b": 35\r\n", HIDDEN),
    "NUL in a value": post(b"A: \x00\r\n" + LENGTH, HIDDEN),
    "CR in a value": post(b"A: b\rContent-Length: 35\r\n", HIDDEN),
    "LF ends the lines": post(LENGTH, HIDDEN).replace(b"\r\n", b"\n"),
    "CR ends the lines": post(LENGTH, HIDDEN).replace(b"\r\n", b"\r"),
    "LF ends one header": post(b"A: b\n" + LENGTH, HIDDEN),
    "other coding": post(b"Transfer-Encoding: identity\r\n", HIDDEN),
    "chunked not last": post(b"Transfer-Encoding: chunked, gzip\r\n", AS_CHUNK),
    "chunked with a mark": post(b"Transfer-Encoding: \x0bchunked\r\n", AS_CHUNK),
    "chunked by another name": post(b"Transfer-Encoding: xchunked\r\n", AS_CHUNK),
    "chunked as a list of two": post(b"Transfer-Encoding: chunked, chunked\r\n", AS_CHUNK),
    "two codings": post(CHUNKED + b"Transfer-Encoding: identity\r\n", AS_CHUNK),
    "quoted coding": post(b'Transfer-Encoding: "chunked"\r\n', AS_CHUNK),
    "chunk size with a sign": post(CHUNKED, b"+23\r\n" + HIDDEN + b"\r\n0\r\n\r\n"),
    "chunk size with 0x": post(CHUNKED, b"0x23\r\n" + HIDDEN + b"\r\n0\r\n\r\n"),
    "chunk size empty": post(CHUNKED, b"\r\n" + HIDDEN + b"\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": post(CHUNKED, b"f" * 17 + b"\r\n" + HIDDEN),
    "chunk size and LF": post(CHUNKED, b"23\n" + HIDDEN + b"\r\n0\r\n\r\n"),
    "chunk longer than its size": post(CHUNKED, b"1\r\n" + HIDDEN + b"\r\n0\r\n\r\n"),
    "chunk size and a space": post(CHUNKED, b"23 \r\n" + HIDDEN + b"\r\n0\r\n\r\n"),
    "LF in a chunk extension": post(CHUNKED, b"23;a\nb\r\n" + HIDDEN + b"\r\n0\r\n\r\n"),
    "last chunk and LF": post(CHUNKED, b"0\n\n" + HIDDEN),
    "length in a trailer": post(CHUNKED, AS_CHUNK[:-2] + LENGTH + b"\r\n"),
    "CONNECT with a body": post(LENGTH, HIDDEN, b"CONNECT /first HTTP/1.1\r\n"),
    "HTTP/0.9": b"GET /first\r\n" + HIDDEN,
    "HTTP/1.2": post(LENGTH, HIDDEN, b"POST /first HTTP/1.2\r\n"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "space in the path": post(LENGTH, HIDDEN, b"POST /fi rst HTTP/1.1\r\n"),
    "tab in the line": post(LENGTH, HIDDEN, b"POST\t/first HTTP/1.1\r\n"),
}

TAKEN = {
    "two spaces in the line": (post(LENGTH, HIDDEN, b"POST  /first HTTP/1.1\r\n"), HIDDEN),
    "length": (post(LENGTH, HIDDEN), HIDDEN),
    "chunked": (post(CHUNKED, AS_CHUNK), HIDDEN),
    "chunked in capitals": (post(CHUNKED.upper(), AS_CHUNK), HIDDEN),
    "length with zeros": (post(b"Content-Length: 0035\r\n", HIDDEN), HIDDEN),
    "length with spaces around": (post(b"Content-Length:  35 \r\n", HIDDEN), HIDDEN),
    "chunk extension": (
        post(CHUNKED, b'23;a="b"\r\n' + HIDDEN + b"\r\n0\r\n\r\n"),
        HIDDEN,
    ),
    "trailers": (
        post(CHUNKED, AS_CHUNK[:-2] + b"A: b\r\nHost: other\r\n\r\n"),
        HIDDEN,
    ),
    "offer of another protocol, chunked": (
        post(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" + CHUNKED, AS_CHUNK),
        HIDDEN,
    ),
    "offer of another protocol": (
        post(b"Connection: upgrade\r\nUpgrade: h2c\r\n" + LENGTH, HIDDEN),
        HIDDEN,
    ),
}


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    """Return a running server."""
    found = Box()
    await found.start()
    yield found
    await found.stop()


@pytest.mark.parametrize("shape", REFUSED)
async def test_what_is_ambiguous_is_refused(box: Box, shape: str) -> None:
    """An error, the connection is closed, and no hidden request reaches the app."""
    caller = await box.connect()
    caller.send(REFUSED[shape])
    answer = await caller.is_hung_up_on()
    assert answer.split()[1] in (b"400", b"405")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert [path for _, path, _ in box.seen] == []


@pytest.mark.parametrize("shape", TAKEN)
async def test_what_is_clear_is_one_request(box: Box, shape: str) -> None:
    """What looks like a request is its body, and the next one is found right behind it."""
    sent, body = TAKEN[shape]
    caller = await box.connect()
    caller.send(sent)
    assert await caller.read_answer() == (200, b"done")
    caller.send(b"GET /second HTTP/1.1\r\nHost: box\r\nConnection: close\r\n\r\n")
    assert await caller.read_answer() == (200, b"done")
    assert box.seen == [("POST", "/first", body), ("GET", "/second", b"")]
