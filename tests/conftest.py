"""What many tests share: the tiny checkpoint, and a real server in a process of its own."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_SECONDS = 120
STOP_SECONDS = 30


@dataclass
class RunningServer:
    """A `flux2-serve serve` process with its addresses. Output lines can be waited for."""

    process: subprocess.Popen[str]
    data_dir: Path
    http: str = ""
    https: str = ""
    lines: list[str] = field(default_factory=list)
    _unread: queue.Queue[str | None] = field(default_factory=queue.Queue)

    @property
    def ca_path(self) -> Path:
        """The certificate authority that signed the server's certificate."""
        return self.data_dir / "tls" / "ca.pem"

    @property
    def tls_address(self) -> str:
        """Host and port of the HTTPS listener, under the name in its certificate."""
        return f"localhost:{self.https.rpartition(':')[2]}" if self.https else ""

    def read_output(self) -> None:
        """Collect the process's output; runs in a thread until the output ends."""
        for line in self.process.stdout or ():
            self.lines.append(line)
            self._unread.put(line)
        self._unread.put(None)

    def wait_for(self, text: str, seconds: float = START_SECONDS) -> str:
        """Return the next output line with `text` in it."""
        while True:
            line = self._unread.get(timeout=seconds)
            assert line is not None, f"the server ended early: {''.join(self.lines[-40:])}"
            if text in line:
                return line

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, wait for the end, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)


StartServer = Callable[..., RunningServer]


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny checkpoint, written as a user would."""
    return _write_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def klein_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny distilled klein."""
    return _write_tiny(tmp_path_factory.mktemp("klein") / "distilled", "--model", "klein-4b")


@pytest.fixture(scope="session")
def klein_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny klein with true guidance, whose LM head is not its embedding."""
    return _write_tiny(tmp_path_factory.mktemp("klein") / "base", "--model", "klein-9b-base")


def _write_tiny(folder: Path, *options: str) -> Path:
    command = [str(Path(sys.executable).parent / "flux2-serve"), "demo-model", str(folder)]
    subprocess.run([*command, *options], check=True, timeout=START_SECONDS)
    return folder


@pytest.fixture(scope="session")
def start_server(demo_model: Path) -> Iterator[StartServer]:
    """Return a function that starts a server on free ports and waits until it is ready.

    It takes the data folder and further environment variables (None: not set at all); whatever it
    started is stopped at the end of the session.
    """
    started: list[RunningServer] = []

    def start(
        data_dir: Path, *prefix: str, wait_ready: bool = True, **env: str | None
    ) -> RunningServer:
        command = [
            *prefix,
            str(Path(sys.executable).parent / "flux2-serve"),
            "serve",
            "--port",
            "0",
            "--tls-port",
            env.pop("FLUX2_TLS_PORT", None) or "0",
        ]
        settings: dict[str, str | None] = {
            **os.environ,
            "FLUX2_MODEL": str(demo_model),
            "FLUX2_DATA_DIR": str(data_dir),
            "FLUX2_SAFETY": "off",
            # Random weights hardly ever end a text by themselves, and flex asks for one each time.
            "FLUX2_EXPANSION_TOKENS": "8",
            **env,
        }
        process = subprocess.Popen(
            command,
            env={name: value for name, value in settings.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        server = RunningServer(process, data_dir)
        started.append(server)
        threading.Thread(target=server.read_output, daemon=True).start()
        server.http = server.wait_for("listening on http://").split()[-1]
        if "none" not in command:
            server.https = server.wait_for("listening on https://").split()[-1]
        if wait_ready:
            server.wait_for('"runner ready"')
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(STOP_SECONDS)
        if server.process.stdout:
            server.process.stdout.close()


@pytest.fixture(scope="session")
def server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    """Return a server on the tiny checkpoint, with its proxy on, shared by the whole session."""
    return start_server(tmp_path_factory.mktemp("data"), FLUX2_CONNECT_PORT="0")
