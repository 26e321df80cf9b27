"""Two keys on one box: nothing of the one can be seen, told or ended by the other.

The cases are made from the app's own routes and the catalogue's endpoints, so that a route added
later is in the matrix, or fails `test_every_route_is_in_the_matrix`.
"""

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute

from server.app import create_app
from server.gateway import KEYS_FOLDER
from server.keyfile import KeyFile, KeyLimits, make_secret
from server.settings import Settings
from tests.contract.conftest import SMALL_INPUTS
from tests.server.conftest import MakeSettings

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 30
FORBID = {"x-fal-object-lifecycle-preference": '{"initial_acl": {"default": "forbid"}}'}
LISTING = "/v1/models/requests/by-endpoint"
MODELS = "/v1/models"

OPEN = {
    "/health",
    "/health/live",
    "/health/ready",
    "/openapi.json",
    "/api/openapi/queue/openapi.json",
    "/.well-known/jwks.json",
}
FILES = {"/files/{name}"}
TICKETED = ("/uploads/", "/files/upload", "/files/{name}/multipart/")
"""What begins so wants a ticket, or a key, and says so itself: 401 or 403."""

UNOWNED = (
    *("/metrics", "/{endpoint_id:path}", "/queue/{endpoint_id:path}", "/rest/", "/v1/images/"),
    LISTING,
)
"""What begins so is closed, but names nothing of anybody's, as the list of models; the listing has
its own test."""

ADDRESSES = (f"198.51.{high}.{low}" for high, low in itertools.product(range(256), repeat=2))
"""A fresh one for each wrong key, or the slowing of guesses would be all that is seen."""


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Yield every method and path template of the app; its websockets have tests of their own."""
    waiting: list[Any] = list(app.routes)
    while waiting:
        route = waiting.pop(0)
        if isinstance(route, APIRoute):
            yield from ((method, route.path) for method in sorted(route.methods or ()))
        elif not isinstance(route, APIWebSocketRoute):
            waiting = [*route.original_router.routes, *waiting]


def make_header(file: KeyFile) -> dict[str, str]:
    """Make a key and return the header that sends it."""
    key, secret = file.create("a test", KeyLimits(), 1.0)
    return {"authorization": f"Key {key.id}:{secret}"}


class Box:
    """A server with two keys, the first of which has a completed request of several endpoints."""

    def __init__(self, settings: Settings) -> None:
        file = KeyFile(settings.data_dir / KEYS_FOLDER)
        self.owner, self.other = (make_header(file) for _ in range(2))
        self.bad = {"authorization": self.owner["authorization"][:-49] + make_secret()[-49:]}
        self.app = create_app(settings)
        self.kept: dict[str, str] = {}
        self.files: dict[str, str] = {}

    async def call(
        self, headers: dict[str, str], method: str, path: str, **kwargs: Any
    ) -> httpx2.Response:
        """Send a request from an address that nobody used before."""
        transport = httpx2.ASGITransport(self.app, client=(next(ADDRESSES), 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers, **kwargs)

    async def fill(self) -> None:
        """Run one request of each endpoint for the owner, with files that only it may read."""
        for endpoint_id in SMALL_INPUTS:
            headers = {**self.owner, **FORBID}
            answer = await self.call(
                headers, "POST", f"/queue/{endpoint_id}", json=SMALL_INPUTS[endpoint_id]
            )
            self.kept[endpoint_id] = answer.json()["request_id"]
            result = await self.result(endpoint_id)
            self.files[endpoint_id] = result["images"][0]["url"].rpartition("/")[2]

    async def result(self, endpoint_id: str) -> Any:
        """Wait for the owner's request, as its event stream ends with it, and return the result."""
        path = f"/queue/{endpoint_id}/requests/{self.kept[endpoint_id]}"
        async with asyncio.timeout(WAIT_SECONDS):
            await self.call(self.owner, "GET", f"{path}/status/stream")
        answer = await self.call(self.owner, "GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def cases(self, template: str) -> Iterator[tuple[str, str]]:
        """Yield each path of the owner's under a template, with the same one of nobody's."""
        for endpoint_id, request_id in self.kept.items():
            apps = {endpoint_id, "/".join(endpoint_id.split("/")[:2])}
            for app_path in sorted(apps) if "{app_path" in template else [""]:
                path = template.replace("{app_path:path}", app_path)
                path = path.replace("{name}", self.files[endpoint_id])
                nobodys = f"{uuid.uuid4().hex}.png" if "{name}" in template else str(uuid.uuid4())
                mine = path.replace("{request_id}", request_id)
                theirs = path.replace("{request_id}", nobodys)
                yield mine, theirs.replace(self.files[endpoint_id], nobodys)


@pytest.fixture
async def box(make_settings: MakeSettings) -> AsyncIterator[Box]:
    """Return such a box, running."""
    found = Box(make_settings())
    async with found.app.router.lifespan_context(found.app):
        await found.fill()
        yield found


def seen(answer: httpx2.Response) -> tuple[int, bytes, dict[str, str]]:
    """Return all that a caller can tell two answers apart by; each has a request id of its own."""
    headers = {name: text for name, text in answer.headers.items() if name != "x-fal-request-id"}
    return answer.status_code, answer.content, headers


async def test_every_route_is_in_the_matrix(box: Box) -> None:
    """A route is open, names nothing of anybody's, names a request, or serves a file."""
    for _, template in routes_of(box.app):
        known = template in OPEN | FILES | {MODELS} or template.startswith((*TICKETED, *UNOWNED))
        known = known or "{request_id}" in template
        assert known, f"{template}: whose is it, and who may use it?"


async def test_no_key_and_a_bad_key_are_stopped_at_every_closed_route(box: Box) -> None:
    """401 for each method and path but the open ones, with what is there behind it untold."""
    count = 0
    for method, template in routes_of(box.app):
        paths = [template.replace("{endpoint_id:path}", name) for name in SMALL_INPUTS]
        if "{request_id}" in template:
            paths = [path for mine, nobodys in box.cases(template) for path in (mine, nobodys)]
        for path in set(paths):
            for headers in ({}, box.bad):
                answer = await box.call(headers, method, path)
                if template in OPEN | FILES:
                    assert answer.status_code != 401, path
                elif template.startswith(TICKETED):
                    assert answer.status_code in (401, 403), path
                else:
                    assert answer.status_code == 401, (method, path)
                    count += 1
    assert count > 100


async def test_an_open_prefix_is_no_way_around(box: Box) -> None:
    """What begins like an open path and goes on like a closed one leads nowhere."""
    for endpoint_id, request_id in box.kept.items():
        for prefix in ("/files/", "/uploads/", "/health/", "/.well-known/", "/api/openapi/"):
            for step in ("", "%2e%2e/", "x/%2e%2e/%2e%2e/queue/"):
                path = f"{prefix}{step}{endpoint_id}"
                for method, way in (("POST", path), ("GET", f"{path}/requests/{request_id}")):
                    answer = await box.call({}, method, way, json=SMALL_INPUTS[endpoint_id])
                    assert answer.status_code in (401, 404, 405), way


async def test_another_key_s_request_looks_like_none(box: Box) -> None:
    """Each job route, by each endpoint's paths: 404 to the letter; the owner is served after it."""
    routes = [(m, path) for m, path in routes_of(box.app) if "{request_id}" in path]
    assert len(routes) >= 6
    count = 0
    for method, template in routes:
        for mine, nobodys in box.cases(template):
            foreign = await box.call(box.other, method, mine)
            assert foreign.status_code == 404
            assert seen(foreign) == seen(await box.call(box.other, method, nobodys)), mine
            count += 1
    for endpoint_id in SMALL_INPUTS:
        await box.result(endpoint_id)
    assert count >= 40


async def test_no_door_leads_around_ownership(box: Box) -> None:
    """Host names and the proxy's target URL lead to the same 404."""
    for endpoint_id, request_id in box.kept.items():
        path = f"/{endpoint_id}/requests/{request_id}"
        target = {"x-fal-target-url": f"https://queue.fal.run{path}"}
        for further, way in (
            ({"host": "queue.fal.run"}, path),
            ({"host": "queue.fal.run"}, path),
            (target, "/api/fal/proxy"),
            ({}, f"/queue/{path}/"),
        ):
            theirs = await box.call({**box.other, **further}, "GET", way)
            assert theirs.status_code == 404, way
            assert (await box.call({**box.owner, **further}, "GET", way)).status_code == 200, way


async def test_a_forbidden_file_is_there_for_its_owner_alone(box: Box) -> None:
    """Another key, none and a bad one get what an unknown name gets."""
    for method, template in itertools.product(("GET", "HEAD"), FILES):
        for mine, nobodys in box.cases(template):
            for headers in (box.other, {}, box.bad):
                answer = await box.call(headers, method, mine)
                assert answer.status_code == 404
                assert seen(answer) == seen(await box.call(headers, method, nobodys))
            assert (await box.call(box.owner, method, mine)).status_code == 200


async def test_a_file_without_a_wish_is_for_whoever_knows_its_name(box: Box) -> None:
    """Image tags send no key; a stale one in the header is no reason to refuse."""
    answer = await box.call(box.owner, "POST", "/fal-ai/flux-2", json=SMALL_INPUTS["fal-ai/flux-2"])
    url = answer.json()["images"][0]["url"]
    for headers in (box.owner, box.other, {}, box.bad):
        assert (await box.call(headers, "GET", url)).status_code == 200


async def listed(box: Box, headers: dict[str, str], **parameters: Any) -> Any:
    """Return the listing of all endpoints."""
    asked = {"endpoint_id": ",".join(SMALL_INPUTS), **parameters}
    answer = await box.call(headers, "GET", LISTING, params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_each_key_lists_its_own(box: Box) -> None:
    """All of mine in fal's form with the payloads; nothing for the other, by id or cursor."""
    page = await listed(box, box.owner, expand="payloads", limit=3)
    rest = await listed(box, box.owner, expand="payloads", cursor=page["next_cursor"])
    assert (page["has_more"], rest["has_more"], rest["next_cursor"]) == (True, False, None)
    items = page["items"] + rest["items"]
    assert {item["endpoint_id"]: item["request_id"] for item in items} == box.kept
    assert sorted(items, key=lambda item: item["ended_at"], reverse=True) == items
    for item in items:
        assert item["json_input"] == SMALL_INPUTS[item["endpoint_id"]]
        assert item["json_output"] == await box.result(item["endpoint_id"])
        assert item["status_code"] == 200
        assert item["sent_at"] <= item["started_at"] <= item["ended_at"]
        assert item["duration"] >= 0
    empty: Any = {"items": [], "next_cursor": None, "has_more": False}
    assert await listed(box, box.other) == empty
    assert await listed(box, box.other, cursor=page["next_cursor"]) == empty
    for request_id in box.kept.values():
        assert await listed(box, box.other, request_id=request_id) == empty
        (found,) = (await listed(box, box.owner, request_id=request_id))["items"]
        assert "json_input" not in found


WRONG_QUESTIONS: list[dict[str, str]] = [
    {},
    {"endpoint_id": ""},
    {"endpoint_id": ",".join("abcdefghij" * 6)},
    {"endpoint_id": "x", "limit": "0"},
    {"endpoint_id": "x", "limit": "101"},
    {"endpoint_id": "x", "status": "lost"},
    {"endpoint_id": "x", "start": "yesterday"},
    {"endpoint_id": "x", "sort_by": "duration"},
    *(
        {"endpoint_id": "x", "cursor": cursor}
        for cursor in ("", "Mg==", "ä", "WzEuMCwgMWUzMDBd", "WzEuMCwgLTFd", "W05hTiwgSW5maW5pdHld")
    ),
]


async def test_a_wrong_question_is_the_caller_s_fault(box: Box) -> None:
    """Missing, out of range or unreadable: a 4xx, never more."""
    for parameters in WRONG_QUESTIONS:
        answer = await box.call(box.owner, "GET", LISTING, params=parameters)
        assert answer.status_code in (400, 422), parameters
        assert answer.json()["detail"]


NARROWED: list[tuple[dict[str, str], bool]] = [
    ({"status": "success"}, True),
    ({"status": "error"}, False),
    ({"status": "user_error"}, False),
    ({"start": "2000-01-01"}, True),
    ({"start": "2999-01-01T00:00:00Z"}, False),
    ({"end": "2000-01-01T00:00:00+02:00"}, False),
    ({"start": "0001-01-01", "end": "9999-12-31T23:59:59-12:00"}, True),
]


async def test_a_listing_can_be_narrowed(box: Box) -> None:
    """By outcome and by time, with a zone or without."""
    for parameters, found in NARROWED:
        assert bool((await listed(box, box.owner, **parameters))["items"]) == found, parameters


async def test_the_owner_erases(box: Box) -> None:
    """Afterwards request, listing and files are gone for good, and it can be said once only."""
    for endpoint_id, request_id in box.kept.items():
        path = f"/v1/models/requests/{request_id}/payloads"
        name = box.files[endpoint_id]
        answer = await box.call(box.owner, "DELETE", path)
        assert answer.status_code == 200
        link = {"link": f"http://localhost/files/{name}", "exception": None}
        assert answer.json() == {"cdn_delete_results": [link]}
        for gone in (f"/queue/{endpoint_id}/requests/{request_id}", f"/files/{name}"):
            assert (await box.call(box.owner, "GET", gone)).status_code == 404
        assert (await box.call(box.owner, "DELETE", path)).status_code == 404
    assert (await listed(box, box.owner))["items"] == []


async def test_what_runs_is_not_erased(box: Box) -> None:
    """400 until it is over, to its owner; 404 to the other, who cannot cancel it either."""
    held = {"prompt": "hold", "image_size": "square"}
    answer = await box.call(box.owner, "POST", "/queue/fal-ai/flux-2", json=held)
    request_id = answer.json()["request_id"]
    path = f"/v1/models/requests/{request_id}/payloads"
    cancel = f"/queue/fal-ai/flux-2/requests/{request_id}/cancel"
    answer = await box.call(box.owner, "DELETE", path)
    assert (answer.status_code, answer.json()) == (400, {"detail": "Request is still in progress"})
    for method, way in (("DELETE", path), ("PUT", cancel)):
        assert (await box.call(box.other, method, way)).status_code == 404
    assert (await box.call(box.owner, "PUT", cancel)).status_code in (200, 202)
    async with asyncio.timeout(WAIT_SECONDS):
        await box.call(box.owner, "GET", cancel.replace("cancel", "status/stream"))
    assert (await box.call(box.owner, "DELETE", path)).status_code == 200


async def test_numbers_that_json_cannot_carry_are_listed_as_null(box: Box) -> None:
    """An input of 1e999 was accepted as it came; the listing must still be JSON."""
    answer = await box.call(
        box.owner, "POST", "/queue/fal-ai/flux-2", content=b'{"prompt": "x", "seed": 1e999}'
    )
    request_id = answer.json()["request_id"]
    async with asyncio.timeout(WAIT_SECONDS):
        await box.call(
            box.owner, "GET", f"/queue/fal-ai/flux-2/requests/{request_id}/status/stream"
        )
    page = await listed(box, box.owner, expand="payloads", request_id=request_id)
    assert json.loads(json.dumps(page, allow_nan=False)) == page
    assert page["items"][0]["json_input"] == {"prompt": "x", "seed": None}
    assert page["items"][0]["status_code"] == 422


async def test_a_forbidden_file_is_no_reference_for_another_key(box: Box) -> None:
    """The other's edit ends as with a name of nobody's; the owner's own is made."""
    edit = "fal-ai/flux-2/flash/edit"
    details = []
    for headers, name in (
        (box.owner, box.files[edit]),
        (box.other, box.files[edit]),
        (box.other, f"{uuid.uuid4().hex}.png"),
    ):
        body = {**SMALL_INPUTS[edit], "image_urls": [f"http://localhost/files/{name}"]}
        accepted = await box.call(headers, "POST", f"/queue/{edit}", json=body)
        path = f"/queue/{edit}/requests/{accepted.json()['request_id']}"
        async with asyncio.timeout(WAIT_SECONDS):
            await box.call(headers, "GET", f"{path}/status/stream")
        answer = await box.call(headers, "GET", path)
        details.append((answer.status_code, answer.text.replace(name, "NAME")))
    assert [code for code, _ in details] == [200, 422, 422]
    assert details[1] == details[2]
