"""A real server that makes images at once, for whatever is sent to it."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.conftest import StartServer
from tests.contract.fault_server import start_fault_server


@pytest.fixture(scope="module")
def http(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    """Return a client of the server, which must have been surprised by nothing in the end."""
    server = start_fault_server(start_server, tmp_path_factory.mktemp("fuzz"))
    with httpx2.Client(base_url=server.http, trust_env=False, timeout=60) as client:
        yield client
    assert server.stop() == 0
    assert not [line for line in server.lines if "unhandled error" in line]
