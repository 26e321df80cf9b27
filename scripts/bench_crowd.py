"""Connections that do nothing, or next to nothing, kept up until standard input ends.

    bench_crowd.py HOST PORT IDLE DRIPPING STREAMS [STREAM_PATH]

Prints `ready` once all are open, and in the end how often the server closed one.
"""

import asyncio
import contextlib
import sys

DRIP_SECONDS = 1.0
PAUSE_SECONDS = 0.05
HEAD = b"POST /fal-ai/flux-2 HTTP/1.1\r\nHost: localhost\r\n"
HALF_HEAD = HEAD + b"X-Slow: "
HALF_BODY = HEAD + b"Content-Length: 100000\r\n\r\n"


class Crowd:
    """All connections to one server."""

    def __init__(self, host: str, port: int) -> None:
        self.closed = 0
        self._address = (host, port)

    async def keep(self, first: bytes, drip: bytes, opened: asyncio.Event) -> None:
        """Keep one connection up: send `first`, then `drip` each second, and open it again."""
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(*self._address)
                writer.write(first)
                opened.set()
                dripping = asyncio.create_task(_drip(writer, drip))
                try:
                    while await reader.read(4096):
                        pass
                finally:
                    dripping.cancel()
                    writer.close()
            self.closed += 1
            await asyncio.sleep(PAUSE_SECONDS)


async def _drip(writer: asyncio.StreamWriter, drip: bytes) -> None:
    while drip:
        await asyncio.sleep(DRIP_SECONDS)
        writer.write(drip)


async def main() -> None:
    """Open them all, and wait for the end of standard input."""
    host, port, idle, dripping, streams, *path = sys.argv[1:]
    crowd = Crowd(host, int(port))
    stream = f"GET {(path or ['/'])[0]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    kinds = [(b"", b"")] * int(idle)
    kinds += [(HALF_HEAD, b"a"), (HALF_BODY, b"{")] * (int(dripping) // 2)
    kinds += [(stream, b"")] * int(streams)
    events = [asyncio.Event() for _ in kinds]
    keeping = [
        asyncio.create_task(crowd.keep(first, drip, opened))
        for (first, drip), opened in zip(kinds, events, strict=True)
    ]
    for opened in events:
        await opened.wait()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(f"closed {crowd.closed}", flush=True)
    for task in keeping:
        task.cancel()
    await asyncio.gather(*keeping, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
