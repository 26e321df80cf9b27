"""What the tests of other clients share: a server with a key, and each client's own packages.

Each client lies in a folder of its own, `.venv/clients/NAME`, which `scripts/setup` fills from
`requirements/NAME.txt`; it is put in front of the environment of the tests.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import (
    WAIT_SECONDS,
    Api,
    client_environment,
    connect,
    make_picture,
    proxy_recipe,
    skip_or_fail,
)

HERE = Path(__file__).parent
FOLDERS = Path(sys.prefix) / "clients"
KEY = "other-clients:0123456789abcdef"
DENIED = "zeppelin"


@pytest.fixture(scope="session")
def keyed(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    """Return a server that answers nobody without `KEY`, and has a deny list and the proxy."""
    folder = tmp_path_factory.mktemp("keyed")
    deny = folder / "deny.txt"
    deny.write_text(f"{DENIED}\n")
    return start_server(
        folder / "data",
        FLUX2_API_KEY=KEY,
        FLUX2_CONNECT_PORT="0",
        FLUX2_PROMPT_DENY=str(deny),
    )


@pytest.fixture(scope="session")
def keyed_api(keyed: RunningServer) -> Iterator[Api]:
    """Return plain calls on it, with its key."""
    with connect(keyed, authorization=f"Key {KEY}") as http:
        yield Api(http)


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a picture to edit."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    path.write_bytes(make_picture())
    return path


def folder_of(client: str) -> Path:
    """Return where a client's packages lie; skip where they are not installed."""
    folder = FOLDERS / client
    if not folder.is_dir():
        skip_or_fail(f"the client {client} is not installed: run scripts/setup")
    return folder


def run_client(
    client: str, script: str, *arguments: Any, env: Mapping[str, str], recipe: str = ""
) -> Any:
    """Run a script of `python/` with a client and return the JSON that it prints.

    `env` is its environment, `recipe` what a shell is told before. Paths among the arguments are
    passed as they are, all else as JSON.
    """
    words = [str(item) if isinstance(item, Path) else json.dumps(item) for item in arguments]
    program = [sys.executable, "-P", str(HERE / "python" / script), *words]
    done = subprocess.run(
        ["bash", "-c", f'{recipe}\nexec "$@"', "bash", *program],
        env={"PATH": os.environ["PATH"], **env, "PYTHONPATH": str(folder_of(client))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_SECONDS * 2,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by_hosts(server: RunningServer) -> dict[str, str]:
    """Return the environment that leads a client to the server by the names of its hosts."""
    return {**client_environment(server), "FAL_KEY": KEY}


def by_proxy(server: RunningServer) -> str:
    """Return the lines that lead any program to the server by its proxy, with the key."""
    return f"{proxy_recipe(server)}\nexport FAL_KEY={KEY}"
