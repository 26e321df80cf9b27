"""A real gateway in a process of its own, to be killed and started again on the same folder.

Every process that comes of it carries a mark in its environment, so that a test can show that
none was left behind, and that there was never a second runner.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx2

FAULTS = Path(__file__).parent
ROOT = FAULTS.parent.parent
MARK = "FLUX_FAULT_TEST"
"""Not `FLUX2_...`: those are the gateway's settings, which a runner does not inherit."""

START_SECONDS = 60
STOP_SECONDS = 40
POLL_SECONDS = 0.01
ENDPOINT = "fal-ai/flux-2"


class Life:
    """The output of one process, from its start to its end, read as it comes."""

    def __init__(self, output: IO[str]) -> None:
        self.lines: list[str] = []
        self._output = output
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_line(self, text: str, seconds: float, skip: int) -> str:
        """Return the first line with `text` in it after `skip` others."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                found = [line for line in self.lines if text in line]
                if len(found) > skip:
                    return found[skip]
                left = deadline - time.monotonic()
                assert not self._ended, f"no {text!r}, the output ended:\n{self.tail()}"
                assert left > 0, f"no {text!r} in {seconds} s:\n{self.tail()}"
                self._changed.wait(left)

    def tail(self) -> str:
        """Return the newest lines, for messages about failures."""
        return "".join(self.lines[-40:])

    def join(self) -> None:
        """Wait until the last process that writes there has ended."""
        self._reader.join(STOP_SECONDS)

    def _read(self) -> None:
        with self._output:
            for line in self._output:
                with self._changed:
                    self.lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@dataclass
class Gateway:
    """One data folder and the process that serves it, over plain HTTP on a port that stays.

    `launcher` replaces the `flux2-serve` command by a script that runs it with faults;
    `settings` are environment variables without their prefix.
    """

    data_dir: Path
    settings: dict[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: os.urandom(8).hex())
    port: int = 0
    tls_port: int | None = None
    process: subprocess.Popen[str] | None = None
    lives: list[Life] = field(default_factory=list)
    _clients: list[httpx2.Client] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = self.port or free_port()

    @property
    def url(self) -> str:
        """The address of the HTTP port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The gateway's process id."""
        assert self.process is not None
        return self.process.pid

    def spawn(self) -> None:
        """Start the process and return at once, long before it listens."""
        command = self.launcher or (str(Path(sys.executable).parent / "flux2-serve"),)
        tls = "none" if self.tls_port is None else str(self.tls_port)
        settings = {
            "PIPELINE_FACTORY": "fault_pipelines:instant",
            "MODEL": str(self.data_dir.parent),
            "DATA_DIR": str(self.data_dir),
            "DISK_RESERVE_BYTES": "0",
            "SAFETY": "off",
            **self.settings,
        }
        paths = [str(FAULTS), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [*command, "serve", "--port", str(self.port), "--tls-port", tls],
            env={
                **os.environ,
                **{f"FLUX2_{name}": value for name, value in settings.items()},
                **self.environment,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                MARK: self.mark,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.lives.append(Life(self.process.stdout))

    def start(self, until: str | None = '"runner ready"') -> "Gateway":
        """Start the process and wait until it listens, and for a line with `until` in it."""
        self.spawn()
        self.wait_line("listening on http://")
        if until:
            self.wait_line(until)
        return self

    @property
    def lines(self) -> list[str]:
        """The output of all lives."""
        return [line for life in self.lives for line in life.lines]

    def wait_line(self, text: str, seconds: float = START_SECONDS, *, skip: int = 0) -> str:
        """Return the first output line of this life with `text` in it, after `skip` others."""
        return self.lives[-1].wait_line(text, seconds, skip)

    def count_lines(self, text: str) -> int:
        """Count the output lines with `text` in them, over all lives."""
        return sum(text in line for line in self.lines)

    def tail(self) -> str:
        """Return the newest output, for messages about failures."""
        return self.lives[-1].tail()

    def kill(self) -> None:
        """End the gateway as a crash does, and leave its runner to notice by itself."""
        self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, wait for the end of the gateway, and return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end of the gateway and return its exit code."""
        assert self.process is not None
        return self.process.wait(STOP_SECONDS)

    def close(self) -> None:
        """Make sure that nothing is left of it, and read its output to the end."""
        for client in self._clients:
            client.close()
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
        wait_until(lambda: not marked(self.mark), STOP_SECONDS, "processes are left")
        self.lives[-1].join()

    def runners(self) -> list[int]:
        """Return the process ids of the gateway's living runners."""
        return [pid for pid in marked(self.mark) if _parent(pid) == self.pid and _is_runner(pid)]

    def runner(self) -> int:
        """Return the process id of the one runner, and wait for it if need be."""
        wait_until(lambda: len(self.runners()) == 1, START_SECONDS, "there is not one runner")
        return self.runners()[0]

    def client(self, seconds: float = 60) -> httpx2.Client:
        """Make a client for the HTTP port; it is closed with the gateway."""
        client = httpx2.Client(base_url=self.url, trust_env=False, timeout=seconds)
        self._clients.append(client)
        return client


class Client:
    """A caller of the queue, by plain HTTP on a connection that is kept."""

    def __init__(self, gateway: Gateway, seconds: float = 60) -> None:
        self.http = gateway.client(seconds)

    def post(self, prompt: str, **options: Any) -> httpx2.Response:
        """Submit a small request; `headers`, `params` and `fields` of the input as given."""
        fields = {"prompt": prompt, "image_size": "square", **options.pop("fields", {})}
        return self.http.post(f"/queue/{ENDPOINT}", json=fields, **options)

    def submit(self, prompt: str, **options: Any) -> str:
        """Submit a request that must be accepted; return its id."""
        answer = self.post(prompt, **options)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["request_id"])

    def get(self, request_id: str, rest: str = "") -> httpx2.Response:
        """Ask for the result, or for `rest` below it."""
        return self.http.get(f"/queue/{ENDPOINT}/requests/{request_id}{rest}")

    def status(self, request_id: str) -> str:
        """Return the status word."""
        return str(self.get(request_id, "/status").json()["status"])

    def cancel(self, request_id: str) -> httpx2.Response:
        """Ask to cancel."""
        return self.http.put(f"/queue/{ENDPOINT}/requests/{request_id}/cancel")

    def messages(self, request_id: str) -> list[str]:
        """Return the log of the request so far."""
        lines = self.get(request_id, "/status?logs=1").json()["logs"]
        return [line["message"] for line in lines or ()]

    def wait_running(self, request_id: str, seconds: float = 60) -> None:
        """Wait until the request's pipeline takes steps."""
        wait_until(
            lambda: any("step" in message for message in self.messages(request_id)),
            seconds,
            f"{request_id} does not run",
        )

    def wait(self, request_id: str, seconds: float = 60) -> httpx2.Response:
        """Follow the status stream to its end, and return the result."""
        path = f"/queue/{ENDPOINT}/requests/{request_id}/status/stream"
        with self.http.stream("GET", path, timeout=seconds) as stream:
            for _ in stream.iter_lines():
                pass
        result = self.get(request_id)
        assert result.status_code != 400, result.text
        return result

    def ready(self) -> httpx2.Response:
        """Ask whether an image can be made."""
        return self.http.get("/health/ready")


def wait_until(condition: Callable[[], object], seconds: float, complaint: str) -> None:
    """Poll until the condition holds; fail with the complaint when the time is over."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, complaint
        pause.wait(POLL_SECONDS)


def free_port() -> int:
    """Return a port that is free now and will not be taken by somebody's outgoing connection.

    A gateway that is started again must find its port free, so the range is the one below the
    kernel's for outgoing connections.
    """
    for _ in range(1000):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")


def marked(mark: str) -> list[int]:
    """Return the process ids, zombies left out, of all processes that carry the mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _is_runner(pid: int) -> bool:
    """Tell a runner from whatever else the gateway is about to start: a fork still has its mark."""
    try:
        return b"server.runners.runner_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
