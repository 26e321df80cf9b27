"""Requests against a server, one at a time or as many as it takes, and what they took."""

import asyncio
import json
import math
import select
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_cores import on_core

WRK_SCRIPT = Path(__file__).with_name("bench_wrk.lua")
WAIT_SECONDS = 120


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many per cent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class Line:
    """One keep-alive connection that asks and waits; it adds a few microseconds of its own.

    The server ends connections that are idle for long: they are opened again, off the clock.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._open()
        self.seconds = 0.0

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
        self._socket.close()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the JSON of the answer; `seconds` is then how long it took.

        Raises RuntimeError when the answer is an error.
        """
        return self.exchange(build_request(method, path, body))

    def exchange(self, request: bytes) -> Any:
        """Send what was built before, and do as `ask` does."""
        if select.select([self._socket], [], [], 0)[0]:  # nothing was asked: this is the end
            self.close()
            self._open()
        started = time.perf_counter()
        self._socket.sendall(request)
        status = int(self._stream.readline().split()[1])
        length = 0
        while (header := self._stream.readline()) != b"\r\n":
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        answer = self._stream.read(length)
        self.seconds = time.perf_counter() - started
        if status >= 400:
            raise RuntimeError(f"{request[:200]!r}: {status} {answer!r}")
        return json.loads(answer)

    def _open(self) -> None:
        self._socket = socket.create_connection(self._address, WAIT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._socket.makefile("rb")

    def follow(self, path: str) -> None:
        """Return as soon as the status stream at `path` tells of the end."""
        self._socket.sendall(build_request("GET", f"{path}/stream"))
        while line := self._stream.readline():
            if line.startswith(b"data: ") and json.loads(line[6:])["status"] == "COMPLETED":
                return
        raise RuntimeError(f"{path}: the stream ended early")


def build_request(method: str, path: str, body: Any = None) -> bytes:
    """Return the bytes of a request, with `body` as JSON."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@dataclass(frozen=True, slots=True)
class Load:
    """What came of sending the same request over and over."""

    per_second: float
    p50_ms: float
    p99_ms: float
    requests: int


def load_tool() -> str:
    """Name what makes the load here."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return "a Python loader, for want of wrk: read the rates as lower bounds"
    # wrk prints its version with its usage, and counts that as a failure.
    said = subprocess.run([wrk, "-v"], capture_output=True, text=True, check=False)  # noqa: S603
    return f"wrk {(said.stdout + said.stderr).split()[1]}"


def make_load(
    address: tuple[str, int],
    method: str,
    path: str,
    body: Any = None,
    *,
    connections: int,
    seconds: float,
    core: int,
) -> Load:
    """Send one request over and over on several connections, from the given core.

    Raises RuntimeError when any of them fails.
    """
    wrk = shutil.which("wrk")
    with on_core(core):
        if wrk:
            found = _run_wrk(wrk, address, method, path, body, connections, seconds)
        else:
            found = asyncio.run(_run_loader(address, method, path, body, connections, seconds))
    if found.pop("failed"):
        raise RuntimeError(f"{method} {path}: the server refused under load")
    requests = int(found["requests"])
    return Load(requests / found["seconds"], found["p50_ms"], found["p99_ms"], requests)


def _run_wrk(
    wrk: str,
    address: tuple[str, int],
    method: str,
    path: str,
    body: Any,
    connections: int,
    seconds: float,
) -> dict[str, float]:
    url = f"http://{address[0]}:{address[1]}{path}"
    command = [wrk, "-t1", f"-c{connections}", f"-d{math.ceil(seconds)}s", "-s", str(WRK_SCRIPT)]
    content = [] if body is None else [json.dumps(body)]
    done = subprocess.run(  # noqa: S603
        [*command, url, "--", method, *content], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


async def _run_loader(
    address: tuple[str, int],
    method: str,
    path: str,
    body: Any,
    connections: int,
    seconds: float,
) -> dict[str, float]:
    request = build_request(method, path, body)
    taken: list[float] = []
    failed = 0
    started = time.perf_counter()

    async def work() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection(*address)
        while (asked := time.perf_counter()) < started + seconds:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].split()[0]
            await reader.readexactly(int(length))
            taken.append(time.perf_counter() - asked)
            failed += int(head.split()[1]) >= 400
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(work() for _ in range(connections)))
    return {
        "requests": len(taken),
        "seconds": time.perf_counter() - started,
        "p50_ms": statistics.median(taken) * 1000,
        "p99_ms": percentile(taken, 99) * 1000,
        "failed": failed,
    }
