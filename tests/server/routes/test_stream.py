"""Streams inside one process: what callers who leave may leave behind."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI

from server.app import create_app
from server.settings import Settings
from tests.server.test_dispatcher import WAIT_SECONDS

pytestmark = pytest.mark.anyio

MANY = 50
HELD = json.dumps({"prompt": "hold", "image_size": "square", "seed": 1}).encode()


async def watch_and_leave(app: FastAPI) -> str:
    """Open a stream, leave at its first event, and return the request id."""
    seen = asyncio.Event()
    request_id = ""
    messages = iter([{"type": "http.request", "body": HELD, "more_body": False}])

    async def receive() -> Any:
        message = next(messages, None)
        if message is None:
            await seen.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(message: Any) -> None:
        nonlocal request_id
        if message["type"] == "http.response.start":
            assert message["status"] == 200
            request_id = dict(message["headers"])[b"x-fal-request-id"].decode()
        elif b"data: " in message["body"]:
            seen.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/fal-ai/flux-2/stream",
        "raw_path": b"/fal-ai/flux-2/stream",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return request_id


async def test_fifty_who_leave_mid_stream_leave_nothing(settings: Settings) -> None:
    """No task, no file and no request that runs or waits is left of them."""
    app = create_app(settings)
    async with app.router.lifespan_context(app), asyncio.timeout(WAIT_SECONDS):
        first = await watch_and_leave(app)  # by now everything that lasts is there
        await settle(set())
        before = asyncio.all_tasks()
        left = await asyncio.gather(*(watch_and_leave(app) for _ in range(MANY)))
        assert len({first, *left}) == MANY + 1
        await settle(before)
        assert {task.get_name() for task in asyncio.all_tasks() - before} == set()
    assert not list((settings.data_dir / "files").rglob("*.*"))


async def settle(lasting: set[asyncio.Task[Any]]) -> None:
    """Wait until only tasks that serve no request are left beside those that last."""
    while passing := {
        task
        for task in asyncio.all_tasks() - lasting
        if task.get_name().startswith(("attempt ", "watch ")) and not _is_of_runner(task)
    }:
        await asyncio.wait(passing)


def _is_of_runner(task: asyncio.Task[Any]) -> bool:
    """Say whether it watches the runner's process, whose name has a number for the request id."""
    return task.get_name().removeprefix("watch ").isdecimal()
