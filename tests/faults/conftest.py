"""Gateways to break, each on a folder of its own; none may leave a process behind."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.gateway import MARK, Client, Gateway, marked

MakeGateway = Callable[..., Gateway]


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Mark every process that the test starts, and fail it when one of them outlives it."""
    mark = os.urandom(8).hex()
    monkeypatch.setenv(MARK, mark)
    yield mark
    assert marked(mark) == [], "the test left processes behind"


@pytest.fixture
def make_gateway(tmp_path: Path, mark: str) -> Iterator[MakeGateway]:
    """Return a function that makes a gateway on a fresh folder; its settings are keywords.

    The gateway is not started yet, and gone at the end of the test.
    """
    made: list[Gateway] = []

    def make(**settings: str) -> Gateway:
        folder = tmp_path / f"box{len(made)}"
        folder.mkdir()
        gateway = Gateway(folder / "data", settings, mark=mark)
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        gateway.close()


@pytest.fixture
def gateway(make_gateway: MakeGateway) -> Gateway:
    """Return a running gateway with the instant pipeline."""
    return make_gateway().start()


@pytest.fixture
def client(gateway: Gateway) -> Client:
    """Return a caller of the running gateway."""
    return Client(gateway)
