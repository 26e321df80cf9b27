"""One runner process and the talk with it, from its start until it is gone."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

from pydantic import ValidationError

from server.children import Child
from server.runners.messages import FROM_RUNNER, LENGTHS, FromRunner, ToRunner, to_runner

KILL_AFTER_SECONDS = 5.0


class RunnerDiedError(Exception):
    """The child ended while it was needed; the message says how."""


class RunnerAbsentError(RunnerDiedError):
    """There was no child when it was needed: whoever asked is not the cause."""


class Inbox:
    """What the child says about one request, or about its loading."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._messages: asyncio.Queue[tuple[FromRunner, bytes] | None] = asyncio.Queue()

    def put(self, message: tuple[FromRunner, bytes] | None) -> None:
        """Add what was said; None is the end of all talk."""
        self._messages.put_nowait(message)

    async def receive(self, limit_seconds: float) -> tuple[FromRunner, bytes]:
        """Return the next message and its payload.

        Raises `RunnerDiedError` when the child ended, or is ended for not saying one in time.
        """
        message = None
        try:
            async with asyncio.timeout(limit_seconds):
                message = await self._messages.get()
        except TimeoutError:
            await self._connection.end(f"the runner hung: silent for {limit_seconds:g} s")
        if message is None:
            raise self._connection.make_error()
        return message


class Connection:
    """Reads what a child says into the inboxes of the requests that it is about.

    It ends when the child does, or by `end`: no longer `alive`, it sees to it that the child is
    gone, and then tells every inbox, and `on_end` why.
    """

    def __init__(self, child: Child, order_seconds: float, on_end: Callable[[str], None]) -> None:
        self._child = child
        self._order_seconds = order_seconds
        self._on_end = on_end
        self._inboxes: dict[str | None, Inbox] = {}
        self._end_reason = ""
        self.alive = True
        self._reader = asyncio.create_task(self._read(), name=f"runner {self.pid}")
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.pid}")

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.process.pid

    @contextlib.contextmanager
    def inbox(self, request_id: str | None) -> Iterator[Inbox]:
        """Give an inbox for a request, or for the loading (None)."""
        inbox = self._inboxes[request_id] = Inbox(self)
        if self._reader.done():
            inbox.put(None)
        try:
            yield inbox
        finally:
            del self._inboxes[request_id]

    async def send(self, message: ToRunner) -> None:
        """Tell the child something; raises `RunnerDiedError` when it takes no orders any more."""
        try:
            self._child.writer.write(to_runner(message))
            async with asyncio.timeout(self._order_seconds):
                await self._child.writer.drain()
        except TimeoutError:
            await self.end("the runner hung: it takes no orders")
        except OSError:
            await self.end()
        else:
            return
        raise self.make_error()

    def make_error(self) -> RunnerDiedError:
        """Make the error that says why the child is gone."""
        return RunnerDiedError(self._end_reason)

    async def end(self, reason: str = "") -> None:
        """End the child, for this reason unless it has another one, and return when it is gone."""
        self._end_reason = self._end_reason or reason
        self.alive = False
        self._child.writer.transport.abort()
        await asyncio.wait({self._reader})

    async def _read(self) -> None:
        try:
            while True:
                await self._read_message()
        except (asyncio.IncompleteReadError, OSError):
            pass
        except ValidationError:
            self._end_reason = "the runner sent what is no message"
        finally:
            self.alive = False
            self._end_reason = self._end_reason or await self._describe_end()
            await self._child.end(KILL_AFTER_SECONDS)
            self._on_end(self._end_reason)
            for inbox in self._inboxes.values():
                inbox.put(None)

    async def _watch(self) -> None:
        """See to it that a child that is dead is heard of even if others hold its socket open."""
        await self._child.process.wait()
        await asyncio.wait({self._reader}, timeout=KILL_AFTER_SECONDS)
        await self.end()

    async def _read_message(self) -> None:
        lengths = await self._child.reader.readexactly(LENGTHS.size)
        header_bytes, payload_bytes = LENGTHS.unpack(lengths)
        header = await self._child.reader.readexactly(header_bytes)
        payload = await self._child.reader.readexactly(payload_bytes)
        message = FROM_RUNNER.validate_json(header)
        inbox = self._inboxes.get(getattr(message, "request_id", None))
        if inbox:
            inbox.put((message, payload))

    async def _describe_end(self) -> str:
        try:
            code = await asyncio.wait_for(self._child.process.wait(), KILL_AFTER_SECONDS)
        except TimeoutError:
            return "the runner hung up without ending"
        if code < 0:
            return f"the runner was killed by {signal.Signals(-code).name}"
        return f"the runner ended with code {code}"
