"""The decoder process seen from the gateway: kept, fed one picture at a time, and replaced."""

import asyncio
import os
from pathlib import Path

import structlog

from server.children import Child, spawn
from server.decoder_messages import ANSWER, ORDER, Answer, Order
from server.images import ImageRefusedError
from server.settings import Settings

log = structlog.get_logger(__name__)

START_SECONDS = 60.0
END_SECONDS = 5.0
ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
"""All that the child learns of ours: enough to find its modules, and no secrets."""

LOST = (TimeoutError, OSError, EOFError, ValueError, asyncio.LimitOverrunError)
"""How it shows that the child hangs, is gone, or talks nonsense."""


class Decoder:
    """Turns strangers' files into plain RGB by a child process whose death harms nobody else."""

    def __init__(self, settings: Settings, module: str = "server.decoder_main") -> None:
        self._settings = settings
        self._module = module
        self._child: Child | None = None
        self._ready = False
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The child's process id, or None when there is none."""
        return self._child.process.pid if self._child else None

    async def start(self) -> None:
        """Start the child and wait until it takes orders. Raises OSError."""
        async with self._lock:
            await self._get_ready()

    async def stop(self) -> None:
        """End the child, after the picture it is at."""
        async with self._lock:
            await self._end(END_SECONDS)

    async def decode(self, source: Path, target: Path) -> None:
        """Decode the picture in `source` to an upright RGB PNG at `target`, uncompressed.

        One picture at a time; later callers wait. Raises `ImageRefusedError` when the picture is
        at fault, which includes that decoding it took too long, too much memory, or the child's
        life. Raises OSError when the box is: trying again later may help. There is no `target`
        then.
        """
        async with self._lock:
            done = False
            try:
                await self._get_ready()
                answer = await self._ask(Order(source=source, target=target))
                done = answer.refusal is None and answer.problem is None
            finally:
                if not done:
                    _discard(target)
        if answer.problem:
            raise OSError(answer.problem)
        if answer.refusal:
            refusal = answer.refusal
            raise ImageRefusedError(refusal.error_type, refusal.message, refusal.ctx)

    async def _ask(self, order: Order) -> Answer:
        """Have the child follow an order; one that does not survive it is replaced."""
        try:
            async with asyncio.timeout(self._settings.decode_seconds):
                answer = await self._exchange(ORDER.dump_json(order) + b"\n")
        except LOST as error:
            log.warning("the decoder was lost over a picture", pid=self.pid, reason=repr(error))
            await self._replace()
            raise ImageRefusedError("image_load_error", "Image load error") from error
        except asyncio.CancelledError:
            # Its answer would be taken for the next picture's.
            await self._end(0)
            raise
        if answer.retires:
            await self._replace()
        return answer

    async def _exchange(self, line: bytes) -> Answer:
        """Send a line, if any, and read an answer. Raises one of `LOST`."""
        if self._child is None:
            raise EOFError("there is no decoder")
        self._child.writer.write(line)
        return ANSWER.validate_json(await self._child.reader.readuntil(b"\n"))

    async def _get_ready(self) -> None:
        """See to it that there is a child that takes orders. Raises OSError."""
        if self._child and self._child.reader.at_eof():
            await self._end(0)
        if self._child is None:
            await self._spawn()
        if self._ready:
            return
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._exchange(b"")
        except LOST as error:
            await self._end(0)
            raise OSError(f"the image decoder does not start: {error!r}") from error
        self._ready = True

    async def _replace(self) -> None:
        """Start a new child in place of the one that is there, without waiting for it."""
        await self._end(0)
        try:
            await self._spawn()
        except OSError as error:
            log.error("the image decoder cannot be replaced yet", reason=str(error))

    async def _spawn(self) -> None:
        self._child = await spawn(
            self._module,
            str(self._settings.decode_memory_bytes),
            str(self._settings.reference_limit_pixels),
            environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        )

    async def _end(self, patience_seconds: float) -> None:
        child, self._child, self._ready = self._child, None, False
        if child:
            await child.end(patience_seconds)


def _discard(target: Path) -> None:
    target.unlink(missing_ok=True)
