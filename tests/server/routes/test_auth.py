"""Who gets past the door, what the others hear, and how guessing is slowed."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import FastAPI, Request

from server.clock import SteadyClock
from server.errors import RequestError
from server.keyfile import KeyFile, KeyLimits, make_secret
from server.keys import Caller, Keyring
from server.routes.auth import (
    FAILURES_PER_MINUTE,
    AuthMiddleware,
    Gate,
    caller_of,
    caller_or_none,
    unauthorized,
)
from server.routes.doors import DoorMiddleware
from server.routes.wishes import read_wishes
from server.tickets import Tickets
from tests.server.test_limiter import Hand

pytestmark = pytest.mark.anyio

HERE, THERE = "192.0.2.1", "192.0.2.2"
NO_ACCESS = (
    'Cannot access application "fal-ai/flux-2". '
    "Authentication is required to access this application."
)
MALFORMED = "Invalid Key Authorization header format. Expected '<key_id>:<key_secret>'."
INVALID = "invalid key credentials"
REQUIRED = "Authorization header is required"


class Box:
    """A gate with two keys on a clock that the test moves."""

    def __init__(self, folder: Path, api_key: str | None = None) -> None:
        file = KeyFile(folder)
        self.owners, self.headers = [], []
        for name in ("one", "two"):
            key, secret = file.create(name, KeyLimits(), 1.0)
            self.owners.append(key.id)
            self.headers.append(f"Key {key.id}:{secret}")
        self.clock = Hand()
        self.keys = Keyring(file, api_key, self.clock)
        self.gate = Gate(self.keys, self.clock)
        self.tickets = Tickets(folder, self.clock, self.keys.get)
        self.tickets.load()

    def refused(self, address: str, authorization: str) -> str | None:
        """Return `Retry-After` when the address is told to wait, None when it is not let in."""
        try:
            caller = self.gate.identify(address, authorization)
        except RequestError as error:
            return error.headers["retry-after"]
        assert caller is None
        return None


@pytest.fixture
def box(tmp_path: Path) -> Box:
    """Return such a gate."""
    return Box(tmp_path)


Connect = Callable[..., httpx2.AsyncClient]


@pytest.fixture
def connect(box: Box) -> Connect:
    """Return a function that gives a client of a small app behind the gate."""
    app = FastAPI(openapi_url=None)

    @app.get("/files/{name}")
    async def download(request: Request, name: str) -> dict[str, str | None]:  # noqa: ARG001
        caller = caller_or_none(request)
        return {"reader": caller.owner if caller else None}

    @app.post("/fal-ai/flux-2")
    async def run(request: Request) -> dict[str, str]:
        return {"owner": caller_of(request).owner}

    @app.post("/fal-ai/flux-2/stream")
    async def stream(request: Request) -> dict[str, Any]:
        return asdict(read_wishes(request))

    app.add_middleware(AuthMiddleware, gate=box.gate, tickets=box.tickets)
    app.add_middleware(DoorMiddleware)

    def make(address: str = HERE, authorization: str | None = None) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(app, client=(address, 5000))
        headers = {"authorization": authorization} if authorization else {}
        return httpx2.AsyncClient(transport=transport, base_url="http://box", headers=headers)

    return make


@pytest.mark.parametrize("scheme", ["Key", "key", "KEY", "Bearer", "Key ", "bearer   "])
def test_the_key_opens(box: Box, scheme: str) -> None:
    """With either scheme in any case, and more than one space."""
    credential = box.headers[0].removeprefix("Key ")
    assert box.gate.identify(HERE, f"{scheme} {credential}") == Caller(owner=box.owners[0])


@pytest.mark.parametrize(
    "authorization", [None, "", "Key", "Basic a:b", "Digest x", "Keya:b", "Key a:b", "Key  "]
)
def test_nothing_else_opens(box: Box, authorization: str | None) -> None:
    """No header, another scheme or a wrong key is nobody."""
    assert box.gate.identify(HERE, authorization) is None


def test_without_keys_any_header_is_ignored(tmp_path: Path) -> None:
    """Since fal's clients always send one; everybody is the box's own account."""
    gate = Gate(Keyring(KeyFile(tmp_path)), SteadyClock())
    for authorization in (None, "Key local:local", "Bearer x", "nonsense"):
        assert gate.identify(HERE, authorization) == Caller()


@pytest.mark.parametrize(
    ("path", "authorization", "detail"),
    [
        ("/fal-ai/flux-2", None, NO_ACCESS),
        ("/fal-ai/flux-2/flash/edit", "Key a:b", NO_ACCESS),
        ("/queue/fal-ai/flux-2", "Bearer a", NO_ACCESS),
        ("/queue/fal-ai/flux-2/requests/x/status", None, NO_ACCESS),
        ("/queue/fal-ai/flux-2/requests/x/status", "Key a:b", INVALID),
        ("/queue/fal-ai/flux-2", "Key a", MALFORMED),
        ("/rest/storage/auth/token", None, REQUIRED),
        ("/rest/storage/auth/token", "Key a:b", INVALID),
        ("/rest/storage/auth/token", "Key a", MALFORMED),
        ("/v1/models/requests/by-endpoint", None, REQUIRED),
        ("/v1/models/requests/by-endpoint", "Key a:b", INVALID),
        ("/files/upload", None, REQUIRED),
        ("/", None, NO_ACCESS.replace("fal-ai/flux-2", "")),
    ],
)
def test_the_words_of_a_refusal(path: str, authorization: str | None, detail: str) -> None:
    """One of fal's bodies, by what is missing, wrong or malformed, and where."""
    error = unauthorized(path, authorization)
    assert (error.status, error.body) == (401, {"detail": detail})


async def test_before_method_and_path(connect: Connect, box: Box) -> None:
    """Without a key no path and no method tells whether it exists; OPTIONS and open paths do."""
    async with connect() as stranger, connect(authorization=box.headers[0]) as known:
        for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"):
            for path in ("/fal-ai/flux-2", "/nothing/here", "/", "/healthy", "/files", "/uploads"):
                assert (await stranger.request(method, path)).status_code == 401, (method, path)
        assert (await known.get("/fal-ai/flux-2")).status_code == 405
        assert (await known.get("/nothing/here")).status_code == 404
        assert (await stranger.options("/fal-ai/flux-2")).status_code == 405
        for path in ("/health/x", "/files/x/y", "/uploads/x", "/openapi.json", "/.well-known/x"):
            assert (await stranger.get(path)).status_code == 404, path


async def test_routes_learn_who_asks(connect: Connect, box: Box) -> None:
    """Each key is its owner; on an open path a stranger and a wrong key are nobody."""
    for owner, header in zip(box.owners, box.headers, strict=True):
        async with connect(authorization=header) as client:
            assert (await client.post("/fal-ai/flux-2")).json() == {"owner": owner}
            assert (await client.get("/files/x")).json() == {"reader": owner}
    for wrong in (None, "Key a:b", "Bearer ticket"):
        async with connect(authorization=wrong) as client:
            assert (await client.get("/files/x")).json() == {"reader": None}


async def test_what_a_token_s_caller_may_wish(connect: Connect, box: Box) -> None:
    """What concerns its own request; no webhook and no lifetime, for which its key may ask."""
    headers = {
        "x-fal-object-lifecycle-preference": json.dumps(
            {"expiration_duration_seconds": 5, "initial_acl": {"default": "forbid"}}
        ),
        "x-fal-queue-priority": "low",
        "x-fal-no-retry": "1",
        "x-fal-store-io": "0",
        "x-fal-request-timeout": "9",
    }
    query = {"fal_webhook": "https://example.com", "fal_max_queue_length": "7"}
    token = box.tickets.issue_app_token(Caller(owner=box.owners[0]), ["flux-2"], 60)

    async def wishes(client: httpx2.AsyncClient, **more: str) -> dict[str, Any]:
        async with client:
            answer = await client.post(
                "/fal-ai/flux-2/stream", params={**query, **more}, headers=headers
            )
        found: dict[str, Any] = answer.json()
        return found

    by_key = await wishes(connect(authorization=box.headers[0]), fal_jwt_token=token)
    assert by_key["webhook_url"] == "https://example.com"
    assert (by_key["file_seconds"], by_key["priority"], by_key["queue_limit"]) == (5, 1, 7)
    assert "forbid" in by_key["file_acl"]
    by_token = await wishes(connect(), fal_jwt_token=token)
    nothing = {"webhook_url": None, "file_seconds": None}
    assert by_token == {**by_key, **nothing}


def test_guesses_are_slowed_for_each_address(box: Box) -> None:
    """Twenty at once, then one in three seconds; another address has its own twenty."""
    for _ in range(FAILURES_PER_MINUTE):
        assert box.refused(HERE, "Key a:b") is None
    assert box.refused(HERE, "Key a:b") == "3"
    assert box.refused(HERE, "Bearer other") == "3"
    assert box.refused(THERE, "Key a:b") is None
    box.clock.now += 3.001
    assert box.refused(HERE, "Key a:b") is None
    assert box.refused(HERE, "Key a:b") == "3"
    box.clock.now += 60.001
    for _ in range(FAILURES_PER_MINUTE):
        assert box.refused(HERE, "Key a:b") is None


def test_a_right_guess_too_many_is_not_even_looked_at(tmp_path: Path) -> None:
    """A weak key of the settings is found by none of ten thousand guesses, the right one too."""
    box = Box(tmp_path, api_key="weak1234")
    guesses = [f"Key weak{number:04}" for number in range(10_000)]
    answers = [box.refused(HERE, guess) for guess in guesses]
    assert answers.count(None) == FAILURES_PER_MINUTE
    assert box.refused(HERE, "Key weak1234") == "3"
    assert box.gate.identify(THERE, "Key weak1234") == Caller()


def test_ten_thousand_wrong_keys(box: Box) -> None:
    """From a thousand addresses: nobody is let in, and no good caller is kept out."""
    owner = box.owners[0]
    credential = f"{owner}:{make_secret()}"
    for number in range(10_000):
        address = f"198.51.{number % 1000 // 250}.{number % 250}"
        assert box.refused(address, f"Key {credential}{number}") is None
        box.clock.now += 0.006
    assert box.gate.identify("198.51.0.0", box.headers[0]) == Caller(owner=owner)


def test_one_bad_script_does_not_stop_its_neighbours(box: Box) -> None:
    """Behind one address a key that worked before still does; a new one has to wait."""
    assert box.gate.identify(HERE, box.headers[0])
    for _ in range(FAILURES_PER_MINUTE):
        box.refused(HERE, "Key a:b")
    assert box.gate.identify(HERE, box.headers[0]) == Caller(owner=box.owners[0])
    with pytest.raises(RequestError) as waits:
        box.gate.identify(HERE, box.headers[1])
    assert waits.value.status == 429
    assert box.gate.identify(HERE, None) is None, "who sends no key guesses none"
    box.clock.now += 3.001
    assert box.gate.identify(HERE, box.headers[1]) == Caller(owner=box.owners[1])


@pytest.mark.parametrize(
    ("first", "second", "are_one"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("not-an-address", "192.0.2.1", False),
    ],
)
async def test_what_counts_as_one_address(
    connect: Connect, first: str, second: str, are_one: bool
) -> None:
    """An IPv4 address in either form, and a whole /64 of IPv6."""
    async with connect(first, "Key a:b") as client:
        codes = [(await client.get("/x")).status_code for _ in range(FAILURES_PER_MINUTE + 1)]
    assert codes == [401] * FAILURES_PER_MINUTE + [429]
    async with connect(second, "Key a:b") as client:
        answer = await client.get("/x")
        assert answer.status_code == (429 if are_one else 401)
        if are_one:
            assert int(answer.headers["retry-after"]) >= 1


def test_the_log_of_failures_holds_no_secret(box: Box) -> None:
    """One line for each failure that was looked at, none for the flood after it."""
    with structlog.testing.capture_logs() as lines:
        for _ in range(FAILURES_PER_MINUTE + 100):
            box.refused(HERE, f"Key {box.owners[0]}:hunter2")
    assert len(lines) == FAILURES_PER_MINUTE
    assert lines[0]["address"] == HERE
    assert "hunter2" not in str(lines)
