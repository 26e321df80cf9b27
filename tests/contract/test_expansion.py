"""Prompt expansion over HTTP: repeatable, told in the answer, and never in the way."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import RunningServer, StartServer
from tests.server.receivers import Receiver, status

PROMPT = "a boat"
BODY = {
    "prompt": PROMPT,
    "seed": 3,
    "image_size": {"width": 512, "height": 512},
    "enable_prompt_expansion": True,
    "output_format": "png",
    "sync_mode": True,
}


def ask(server: RunningServer, endpoint: str = "fal-ai/flux-2", **changes: Any) -> dict[str, Any]:
    """Make one image and return the answer."""
    body = {"num_inference_steps": 4, **BODY, **changes}
    answer = httpx2.post(f"{server.http}/{endpoint}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.fixture(scope="module")
def writing(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    """Return a server whose text encoder writes a few tokens."""
    return start_server(tmp_path_factory.mktemp("data"), FLUX2_EXPANSION_TOKENS="8")


def test_the_same_request_gives_the_same_text_and_image(
    writing: RunningServer, start_server: StartServer, tmp_path: Path
) -> None:
    """After others, and on a server that remembers nothing; the answer says what was used."""
    first = ask(writing)
    ask(writing, seed=4)
    again = start_server(tmp_path, FLUX2_EXPANSION_TOKENS="8")
    for server in (writing, again):
        answer = ask(server)
        assert answer["prompt"] == first["prompt"] != PROMPT
        assert answer["images"][0]["url"] == first["images"][0]["url"]
    plain = ask(writing, enable_prompt_expansion=False)
    assert plain["prompt"] == PROMPT
    assert plain["images"][0]["url"] != first["images"][0]["url"]
    used = ask(writing, enable_prompt_expansion=False, prompt=first["prompt"])
    assert used["images"][0]["url"] == first["images"][0]["url"]


def test_seeds_give_different_texts(writing: RunningServer) -> None:
    """Of ten at least two differ."""
    assert len({ask(writing, seed=seed)["prompt"] for seed in range(10)}) > 1


@pytest.mark.parametrize("count", [2, 4])
def test_references_are_seen(writing: RunningServer, count: int) -> None:
    """Two and four of them work, and the text is another than without."""
    picture = ask(writing)["images"][0]["url"]
    edit = ask(writing, "fal-ai/flux-2/flash/edit", image_urls=[picture] * count)
    assert edit["prompt"] not in (PROMPT, ask(writing)["prompt"])


def test_flex_expands_unless_told_not_to(writing: RunningServer) -> None:
    """Its default is on, though its answer does not have the prompt."""
    body = {k: v for k, v in BODY.items() if k != "enable_prompt_expansion"}
    urls = []
    for changes in ({}, {"enable_prompt_expansion": False}):
        answer = httpx2.post(
            f"{writing.http}/fal-ai/flux-2-flex",
            json={**body, "num_inference_steps": 2, **changes},
            timeout=120,
        ).json()
        urls.append(answer["images"][0]["url"])
    assert urls[0] != urls[1]


def test_a_checkpoint_that_cannot_write_keeps_the_prompt(
    start_server: StartServer, tmp_path: Path
) -> None:
    """The demonstration checkpoint says so, and the log of each request too."""
    server = start_server(tmp_path, FLUX2_MODEL="none")
    assert ask(server)["prompt"] == PROMPT
    line = json.loads(server.wait_for("prompt not expanded", 10))
    assert line["reason"] == "unavailable"
    assert "cannot write" in line["detail"]


@pytest.mark.anyio
async def test_an_operators_server_is_asked_instead(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Its text is what the image is made from; when it fails, the caller's prompt is."""
    body = json.dumps({"choices": [{"message": {"content": "a goat"}}]}).encode()

    async def goat(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    async with Receiver(goat, status(500)) as receiver:
        server = await asyncio.to_thread(
            start_server, tmp_path, FLUX2_EXPANSION_URL=receiver.url("/v1")
        )
        assert (await asyncio.to_thread(ask, server))["prompt"] == "a goat"
        assert (await asyncio.to_thread(ask, server, seed=4))["prompt"] == PROMPT
    assert [request.target for request in receiver.received] == ["/v1/chat/completions"] * 2


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, the only loop the server supports."""
    return "asyncio"
