"""HTTP as uvicorn speaks it, with an end to the patience that it has with slow clients.

uvicorn waits for ever for the rest of a head, for the rest of a body, and for a reader that takes
nothing. Each connection here has one timer, for whatever its client owes at the moment; while the
server works on an answer the client owes nothing, however long that takes.
"""

import asyncio
import json
from enum import Enum, auto
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from server.errors import RequestError
from server.settings import Settings

PIECE_BYTES = 64 * 1024
"""How much a client must send of a body, or take of an answer, to be given more time."""

STALL_SECONDS = 60.0
"""How long a reader may take for each piece of an answer."""

MAX_PIPELINED = 100
"""Requests that may wait on one connection: uvicorn reads on whenever one of them is answered, so
without a limit they come in faster than they go."""

HEAD_BYTES = 64 * 1024
"""Longest head, and the most that is read of anything else that is not the body: of trailers, of
chunk extensions."""


class Due(Enum):
    """What the client owes at the moment."""

    HEAD = auto()
    BODY = auto()
    REST = auto()  # of a body whose answer is out; it is read and dropped
    NEXT = auto()  # a further request, if it likes
    NOTHING = auto()


class _Flow(FlowControl):
    """Tells the protocol when reading goes on, as the client's time starts anew then."""

    def __init__(self, transport: asyncio.Transport, protocol: "PatientProtocol") -> None:
        super().__init__(transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        """Let the client send again."""
        if self.read_paused:
            super().resume_reading()
            self._protocol.restart()
        else:
            self._protocol.go_ahead()


class PatientProtocol(HttpToolsProtocol):
    """One connection. Its limits are class attributes; see `with_limits`."""

    header_seconds = 10.0
    body_seconds = 30.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._reading_head, self._reading_body = True, False
        self._holds_back, self._is_silent = False, True
        self._due = Due.NOTHING
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._piece_bytes = self._head_bytes = self._idle_bytes = 0
        self._stall: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._is_made = False
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: the head is due. The transport may also come late, from `loop.start_tls`."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self)
        self._is_made = True
        self._expect(Due.HEAD)
        for data in self._early:
            # Which is another's when a piece before it made this a websocket.
            cast("asyncio.Protocol", transport.get_protocol()).data_received(data)
        self._early.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, with all timers."""
        for timer in (self._timer, self._stall):
            if timer:
                timer.cancel()
        self._timer = self._stall = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, then see what the client owes now."""
        if not self._is_made:
            self._early.append(data)  # start_tls hands over what came with the handshake first
            return
        if self.transport.is_closing():
            return
        self._idle_bytes += len(data)
        self._is_silent = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            rest = data[offer.args[0] :]
            if self._may_upgrade(rest):
                self._hand_over()
                return
            self._decline(rest)
        except httptools.HttpParserError:
            self._refuse(400, "Invalid HTTP request")
        if self._idle_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, "The request's head is too long")
        if self.transport.is_closing():
            self._watch_reader()
            return
        self._piece_bytes += len(data)
        due = self._what_is_due()
        if due is not self._due or (due is Due.BODY and self._piece_bytes >= PIECE_BYTES):
            self._expect(due)

    def restart(self) -> None:
        """Give the client its time from now on: until now it was the server that did not read."""
        self._expect(self._what_is_due())

    def go_ahead(self) -> None:
        """Start the body's time when its sender, who asked first, has just been told to send."""
        if self._holds_back and not self.cycle.waiting_for_100_continue:
            self._holds_back = False
            self.restart()

    def on_message_begin(self) -> None:
        """Note the first byte of a head."""
        super().on_message_begin()
        self._reading_head, self._reading_body = True, False
        self._head_bytes = self._idle_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Note a piece of the URL."""
        self._count_head(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header. Trailers are dropped: the request is under way without them."""
        if self._reading_head:
            self._count_head(name + value)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Note the end of a head. Raises, which ends the connection, when too many wait."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many pipelined requests")
        if self.parser.should_upgrade():
            return  # the parser stops here, and `_decline` reads the request once more
        super().on_headers_complete()
        self._reading_head, self._reading_body = False, True
        self._holds_back = self.expect_100_continue
        self._idle_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Note a piece of the body."""
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a body."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._reading_body = False

    def on_response_complete(self) -> None:
        """See what the client owes after an answer, in place of uvicorn's own keep-alive timer."""
        super().on_response_complete()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            self._watch_reader()
            return
        if self._reading_body and self.expect_100_continue:
            # It asked first, and was refused: it may send the body or not, so what comes next
            # could be taken for either.
            self.transport.close()
            return
        self._expect(self._what_is_due())

    def shutdown(self) -> None:
        """Begin a stop: a connection without a request is closed at once."""
        super().shutdown()
        if self.transport.is_closing():
            self._watch_reader()

    def pause_writing(self) -> None:
        """Stop the answer while the reader lags, and watch that it does take something."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Go on with the answer: the reader took what was there."""
        super().resume_writing()
        if self._stall and not self.transport.is_closing():
            self._stall.cancel()
            self._stall = None

    def _what_is_due(self) -> Due:
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._reading_body:
            return Due.BODY if answering else Due.REST
        if answering:
            return Due.NOTHING
        if self._reading_head:
            return Due.HEAD
        return Due.NEXT

    def _expect(self, due: Due) -> None:
        """Start the client's time for what is due."""
        self._due = due
        self._piece_bytes = 0
        if due is Due.NOTHING:
            return  # a timer that still runs finds nothing to do
        self._deadline = self.loop.time() + self._seconds(due)
        if self._timer and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(self._deadline, self._on_timer)

    def _seconds(self, due: Due) -> float:
        if due is Due.HEAD:
            return self.header_seconds
        return float(self.timeout_keep_alive) if due is Due.NEXT else self.body_seconds

    def _on_timer(self) -> None:
        self._timer = None
        if self._due is Due.NOTHING or self.transport.is_closing():
            return
        if self._is_our_turn():
            self._expect(self._due)
        elif self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._on_timer)
        else:
            self._give_up()

    def _is_our_turn(self) -> bool:
        """Tell whether the client waits for us: to read on, to ask for the body, to be sent all."""
        if self._due is Due.NEXT and self.transport.get_write_buffer_size():
            self._watch_reader()
            return True
        asked = self._due is Due.BODY and self.cycle.waiting_for_100_continue
        return self.flow.read_paused or asked

    def _may_upgrade(self, rest: bytes) -> bool:
        """Tell whether a request begins a websocket, and nothing else is under way here.

        `rest` is what came behind its head: a body, which such a request does not have, or what
        nobody may send before the answer.
        """
        names = {name for name, _ in self.headers}
        # Before the first answer it is TLS itself that may have something left to send.
        is_idle = self.cycle is None or (self.cycle.response_complete and not self._count_unsent())
        return (
            self._should_upgrade()
            and self.parser.get_method() == b"GET"
            and not (rest or names & {b"content-length", b"transfer-encoding"})
            and is_idle
            and not self.pipeline
        )

    def _hand_over(self) -> None:
        """Leave the connection to the websocket's own protocol, with no timer of ours behind."""
        for timer in (self._timer, self._stall):
            if timer:
                timer.cancel()
        self._timer = self._stall = None
        self.scope["method"] = "GET"
        self.handle_websocket_upgrade()

    def _decline(self, rest: bytes) -> None:
        """Read a request again without its offer of another protocol, such as h2c.

        The parser would take its body for the other protocol. Java's client offers h2c with every
        first request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(405, "Method Not Allowed")
            return
        kept = [item for item in self.headers if item[0] not in (b"upgrade", b"connection")]
        lines = [b"%s: %s\r\n" % item for item in kept]
        line = b"%s %s HTTP/%s\r\n" % (method, self.url, self.parser.get_http_version().encode())
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join((line, *lines, b"\r\n", rest)))

    def _give_up(self) -> None:
        # Who never said a word may be about to: it would take this for the answer to its request.
        if self._due in (Due.HEAD, Due.BODY) and not self._is_silent:
            self._refuse(408, "The request took too long to arrive", "request_timeout")
        else:
            self.transport.close()
            self._watch_reader()

    def _refuse(self, status: int, detail: str, error_type: str | None = None) -> None:
        """Give the request that is coming in this answer, unless it has one, and close."""
        is_open = self.cycle is not None and not self.cycle.response_complete
        has_answer = (is_open or self._reading_body) and self.cycle.response_started
        if is_open:
            # Whoever reads the body hears that the client is gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not has_answer:
            error = RequestError(status, detail, error_type)
            content = json.dumps(error.body).encode("ascii")
            headers = {
                **error.headers,
                "content-type": "application/json",
                "content-length": str(len(content)),
                "connection": "close",
            }
            lines = [f"{name}: {value}\r\n".encode("ascii") for name, value in headers.items()]
            self.transport.write(b"".join((STATUS_LINE[status], *lines, b"\r\n", content)))
        self.transport.close()
        self._watch_reader()

    def _count_head(self, piece: bytes) -> None:
        self._head_bytes += len(piece)
        if self._head_bytes > HEAD_BYTES:
            raise ValueError("the head is too long")

    def _watch_reader(self) -> None:
        unsent = self._count_unsent()
        if self._stall is None and unsent:
            self._unsent_bytes = unsent
            self._stall = self.loop.call_later(STALL_SECONDS, self._on_stall)

    def _count_unsent(self) -> int:
        return count_unsent(self.transport)

    def _on_stall(self) -> None:
        """Hang up on a reader that took less than a piece since the last look."""
        self._stall = None
        unsent = self._count_unsent()
        if unsent > max(0, self._unsent_bytes - PIECE_BYTES):
            self.transport.abort()
        else:
            self._watch_reader()


def count_unsent(transport: asyncio.WriteTransport) -> int:
    """Return how many bytes wait for the reader."""
    try:
        return transport.get_write_buffer_size()
    except AttributeError:
        # CPython's TLS transport lets go of what it would ask when it is closed a second time.
        return 0


def with_limits(settings: Settings) -> type[PatientProtocol]:
    """Return the protocol with the settings' limits, as uvicorn's `http` option takes it."""
    limits = {"header_seconds": settings.header_seconds, "body_seconds": settings.body_seconds}
    return type("LimitedProtocol", (PatientProtocol,), limits)
