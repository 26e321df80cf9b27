"""Websockets as uvicorn speaks them, with the same end to patience that `protocol` has.

uvicorn waits for ever for the rest of a message, and for a reader that takes nothing: also once the
connection is closed on our side, and nobody would notice any more.
"""

import asyncio
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from server.protocol import PIECE_BYTES, STALL_SECONDS, count_unsent
from server.settings import Settings

PING_SECONDS = 20.0
"""How often it is asked whether the peer is still there."""

MAX_PONG_BYTES = 64 * 1024
"""Most answers to pings that wait for a reader: who asks whether we are there wants to hear it."""

MAX_FRAMES = 16 * 1024
"""Most pieces of one message. Go's clients send pieces of 4 KiB, and so messages of 64 MiB."""

NO_TEXT, TOO_SLOW, TOO_MANY, RESTARTING = 1007, 1008, 1008, 1012
"""Close codes; 1012 says that the server restarts, so that it may be worth to come back."""


class _Outlet:
    """A transport that counts what is written to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._written_bytes = 0

    def write(self, data: bytes) -> None:
        """Send, when the network takes it."""
        self._written_bytes += len(data)
        self._transport.write(data)

    def count_unsent(self) -> int:
        """Return how many bytes wait for the reader."""
        return count_unsent(self._transport)

    def count_taken(self) -> int:
        """Return how many bytes the reader took so far."""
        return self._written_bytes - self.count_unsent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class PatientWebSocket(WebSocketsSansIOProtocol):
    """One connection, from the head of its handshake on. See `with_limits`."""

    body_seconds = 30.0
    transport: Any

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._rest: asyncio.TimerHandle | None = None
        self._piece_bytes = 0
        self._look: asyncio.TimerHandle | None = None
        self._unsent_bytes = self._taken_bytes = 0
        self._pong_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and look at the reader from time to time until the very end."""
        outlet = _Outlet(cast("asyncio.Transport", transport))
        super().connection_made(cast("asyncio.Transport", outlet))
        self._look = self.loop.call_later(STALL_SECONDS, self._look_at_reader)

    def connection_lost(self, exc: Exception | None) -> None:
        """End, with all timers."""
        self._end_rest()
        if self._look:
            self._look.cancel()
            self._look = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, then see whether the rest of a message is due."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if not self.handshake_initiated:
            # Some heads that HTTP takes are refused here, and uvicorn would keep that to itself.
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()
            return
        if len(self.frames) > MAX_FRAMES and not self.transport.is_closing():
            self._fail(TOO_MANY, "The message comes in too many pieces")
        if self.transport.is_closing() or not (self.frames or self.conn.reader.buffer):
            self._end_rest()
            return
        self._piece_bytes += len(data)
        if self._rest is None or self._piece_bytes >= PIECE_BYTES:
            self._expect_rest()

    def send_receive_event_to_app(self) -> None:
        """Pass on a whole message; the next one has its own time.

        uvicorn would log a text that is none as a mistake of ours.
        """
        self._end_rest()
        self.frames = [b"".join(self.frames)]
        if self.curr_msg_data_type == "text" and not (self.close_sent or _is_text(self.frames[0])):
            self.frames = []
            self._fail(NO_TEXT, "The message is not UTF-8")
            return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        """Send the answer; hang up on a peer that asks on and takes none.

        What else waits for it does not count: it may ask while it reads a long answer.
        """
        if not self.transport.count_unsent():
            self._pong_bytes = 0
        pongs = b"".join(self.conn.data_to_send())
        self._pong_bytes += len(pongs)
        if self._pong_bytes > MAX_PONG_BYTES:
            self.transport.abort()
        else:
            self.transport.write(pongs)

    async def send(self, message: Any) -> None:
        """Send what the app says; uvicorn logs every refusal of its own accord as a mistake."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True

    def keepalive_timeout(self) -> None:
        """Give up a peer that answers no ping; one that has not got it yet is only slow."""
        if self.transport.count_unsent() and not self.transport.is_closing():
            assert self.ping_timeout is not None  # noqa: S101  (it is what has just passed)
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()

    def shutdown(self) -> None:
        """Begin a stop: the peer hears that we go, once, and the app that the peer is gone."""
        self.stop_keepalive()
        if self.handshake_complete and not self.close_sent:
            self.close_sent = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": RESTARTING})
            self.conn.fail(RESTARTING, "The server is stopping")
            self.transport.write(b"".join(self.conn.data_to_send()))
        elif not self.handshake_complete:
            self.send_500_response()
        self.transport.close()

    def _expect_rest(self) -> None:
        self._end_rest()
        self._rest = self.loop.call_later(self.body_seconds, self._on_rest_overdue)

    def _end_rest(self) -> None:
        self._piece_bytes = 0
        if self._rest:
            self._rest.cancel()
            self._rest = None

    def _on_rest_overdue(self) -> None:
        """Hang up on a peer that does not finish its message, unless it is we who do not read."""
        self._rest = None
        if self.transport.is_closing():
            return
        if self.read_paused:
            self._expect_rest()
            return
        self._fail(TOO_SLOW, "The message took too long to arrive")

    def _fail(self, code: int, reason: str) -> None:
        """Close for a fault of the peer's, who is not told before its handshake is answered."""
        self.conn.fail(code, reason)
        if self.conn.close_sent is None:
            self.transport.abort()
        else:
            self.handle_parser_exception()

    def _look_at_reader(self) -> None:
        """Hang up on a reader that took less than a piece since the last look."""
        unsent, taken = self.transport.count_unsent(), self.transport.count_taken()
        owed = min(PIECE_BYTES, self._unsent_bytes)
        if unsent and owed and taken < self._taken_bytes + owed:
            self._look = None
            self.transport.abort()
            return
        self._unsent_bytes, self._taken_bytes = unsent, taken
        self._look = self.loop.call_later(STALL_SECONDS, self._look_at_reader)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def with_limits(settings: Settings) -> type[PatientWebSocket]:
    """Return the protocol with the settings' limits, as uvicorn's `ws` option takes it."""
    return type("LimitedWebSocket", (PatientWebSocket,), {"body_seconds": settings.body_seconds})
