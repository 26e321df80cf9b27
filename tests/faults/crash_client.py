"""A caller in a process of its own, who keeps a ledger of what the server promised.

    python -m tests.faults.crash_client KIND ADDRESS LEDGER FIRST_SEED

Each line on standard input is a number of requests to submit; at its end the caller leaves. A
line of the ledger is on disk before the next request is sent:

    S ID SEED      the request was accepted
    C ID STATUS    a cancel of it was answered so, or sent (0) and not answered yet
    R ID DIGEST    this was read as its result, status and body
"""

import hashlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import httpx2

ENDPOINT = "fal-ai/flux-2"
GIVE_UP_SECONDS = 120
PAUSE_SECONDS = 0.02
CANCEL_EVERY = 25
RETRIED = (429, 503)


class Ledger:
    """What was promised, one synced line each."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("a", encoding="ascii")

    def note(self, *words: object) -> None:
        """Add a line; it survives this process."""
        print(*words, file=self._file, flush=True)
        os.fsync(self._file.fileno())


def make_input(seed: int) -> dict[str, Any]:
    """Make the smallest input there is; the image tells the seed."""
    return {
        "prompt": "plain",
        "image_size": "square",
        "seed": seed,
        "num_inference_steps": 4,
    }


def digest(status: int, body: bytes) -> str:
    """Return what two answers must have in common to be the same."""
    return hashlib.sha256(b"%d %b" % (status, body)).hexdigest()


def is_outcome(result: httpx2.Response) -> bool:
    """Say whether this is the request's own end, and not the server's state of the moment."""
    if result.status_code == 503:
        return result.headers.get("x-fal-error-type") == "runner_disconnected"
    return result.status_code != 400


def insist(call: Callable[[], httpx2.Response]) -> httpx2.Response:
    """Call until an answer comes: a server that is down comes back."""
    pause = threading.Event()
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while True:
        with suppress(httpx2.TransportError):
            answer = call()
            if answer.status_code not in RETRIED:
                return answer
        if time.monotonic() > deadline:
            raise TimeoutError("the server does not come back")
        pause.wait(PAUSE_SECONDS)


def call_plainly(address: str, ledger: Ledger, seeds: Iterator[int]) -> None:
    """Submit, cancel some, and read results while others run, on one connection."""
    open_requests: deque[str] = deque()
    with httpx2.Client(base_url=address, trust_env=False, timeout=30) as http:
        for seed in seeds:
            answer = insist(lambda: http.post(f"/queue/{ENDPOINT}", json=make_input(seed)))  # noqa: B023
            answer.raise_for_status()
            request_id = answer.json()["request_id"]
            ledger.note("S", request_id, seed)
            path = f"/queue/{ENDPOINT}/requests/{request_id}"
            if seed % CANCEL_EVERY == 0:
                # First: the server may be killed between doing it and saying so.
                ledger.note("C", request_id, 0)
                with suppress(httpx2.TransportError):
                    ledger.note("C", request_id, http.put(f"{path}/cancel").status_code)
            open_requests.append(path)
            with suppress(httpx2.TransportError):
                result = http.get(open_requests[0])
                if is_outcome(result):
                    read_id = open_requests.popleft().rpartition("/")[2]
                    ledger.note("R", read_id, digest(result.status_code, result.content))


def call_with_fal_client(address: str, ledger: Ledger, seeds: Iterator[int]) -> None:
    """Submit with fal's own client, which retries by itself, and again when it gives up."""
    os.environ |= {
        "FAL_RUN_HOST": address,
        "FAL_QUEUE_RUN_HOST": f"{address}/queue",
        "FAL_KEY": "local:local",
    }
    import fal_client  # it reads its hosts when it is imported
    import httpx

    deadline = time.monotonic() + GIVE_UP_SECONDS
    for seed in seeds:
        handle = None
        while handle is None:
            try:
                handle = fal_client.submit(ENDPOINT, arguments=make_input(seed))
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
        deadline = time.monotonic() + GIVE_UP_SECONDS
        ledger.note("S", handle.request_id, seed)


def granted(first_seed: int) -> Iterator[int]:
    """Yield a seed for each request that standard input grants."""
    for line in sys.stdin:
        for _ in range(int(line)):
            yield first_seed
            first_seed += 1


def main() -> None:
    """Be the caller that the command line describes."""
    kind, address, ledger, first_seed = sys.argv[1:]
    call = {"plain": call_plainly, "fal": call_with_fal_client}[kind]
    call(address, Ledger(Path(ledger)), granted(int(first_seed)))


if __name__ == "__main__":
    main()
