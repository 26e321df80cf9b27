"""Child processes of the gateway: started the same way, ended the same way, never left behind.

No import of ours: what runs in a child uses the lower half of this page.
"""

import asyncio
import contextlib
import ctypes
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True, slots=True)
class Child:
    """A running Python module and our end of the socket pair between us."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def end(self, patience_seconds: float) -> None:
        """Hang up, which ends a child that listens; kill one that has not ended in time."""
        # Not closed in order: a child that reads nothing would keep us waiting for ever.
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
        try:
            await asyncio.wait_for(self.process.wait(), patience_seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


async def spawn(module: str, *arguments: str, environment: Mapping[str, str]) -> Child:
    """Run `python -m module FD ARGUMENTS...`, FD being the child's end of a socket pair.

    Nothing else is inherited but standard output and error. Raises OSError.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a folder named `server` where the operator stands must not shadow ours
                "-m",
                module,
                str(theirs.fileno()),
                *arguments,
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=environment,
                # Its own session: Ctrl-C in the terminal is the gateway's to handle.
                start_new_session=True,
            )
        except BaseException:
            writer.transport.abort()
            raise
    return Child(process, reader, writer)


def die_with_parent() -> None:
    """Have the kernel end this process when the gateway dies, however busy this one is.

    prctl(PR_SET_PDEATHSIG), Linux. The closing socket says the same, but only to a process that
    gets to read it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
