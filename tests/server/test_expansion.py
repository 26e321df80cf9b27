"""Prompt expansion by a server of the operator's: what it is asked, and every way it can fail."""

import asyncio
import base64
import io
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from structlog.testing import capture_logs

from pipelines.expansion import Expansion, Reason
from pipelines.instructions import DRAWING, EDITING, MAX_PROMPT_CHARACTERS
from server.certs import ensure_certificates
from server.errors import ConfigurationError
from server.expansion import ANSWER_BYTES, RemoteExpander, completions_url
from server.settings import Settings
from tests.server.receivers import (
    Answer,
    Receiver,
    drip,
    dripping_body,
    endless_body,
    hang_up,
    silence,
    status,
)

pytestmark = pytest.mark.anyio

PROMPT = "a boat"
SHORT_SECONDS = 0.3

MakeExpander = Callable[..., RemoteExpander]


@pytest.fixture
async def make(make_settings: Callable[..., Settings]) -> AsyncIterator[MakeExpander]:
    """Return a function that makes the expander of settings with this URL."""
    async with AsyncExitStack() as stack:

        def make_expander(url: str, **changes: Any) -> RemoteExpander:
            made = RemoteExpander.of(make_settings(expansion_url=url, **changes))
            assert made is not None
            stack.push_async_callback(made.close)
            return made

        yield make_expander


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Return four reference images, together larger than what is shown of them."""
    paths = [tmp_path / f"{colour}.png" for colour in ("red", "lime", "blue", "white")]
    for path in paths:
        Image.new("RGB", (600, 400), path.stem).save(path)
    return paths


def said(text: object) -> Answer:
    """Make an answer that is a chat completion with this text."""
    return sent(json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}))


def sent(text: str) -> Answer:
    """Make an answer with this body."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        body = text.encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    return answer


async def test_a_prompt_is_expanded(make: MakeExpander) -> None:
    """Asked for in our words, with the seed and the limits; the answer is tidied up."""
    async with Receiver(said('<think>hm</think>\n"a better boat"')) as receiver:
        expander = make(receiver.url("/v1"), expansion_tokens=99)
        got = await expander.expand(PROMPT, seed=7)
    assert got == Expansion("a better boat", Reason.EXPANDED)
    (request,) = receiver.received
    assert request.target == "/v1/chat/completions"
    assert "authorization" not in request.headers
    assert json.loads(request.body) == {
        "messages": [{"role": "system", "content": DRAWING}, {"role": "user", "content": PROMPT}],
        "temperature": 0.15,
        "max_tokens": 99,
        "seed": 7,
        "stream": False,
    }


async def test_model_and_key_are_sent_where_they_are_given(make: MakeExpander) -> None:
    """And nothing of them is in the log."""
    async with Receiver(said("better")) as receiver:
        expander = make(receiver.url("/v1/"), expansion_model="big", expansion_key="secret-key")
        with capture_logs() as logs:
            await expander.expand(PROMPT, seed=1)
    (request,) = receiver.received
    assert request.target == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret-key"
    assert json.loads(request.body)["model"] == "big"
    assert "secret-key" not in str(logs)


async def test_editing_shows_the_pictures(make: MakeExpander, pictures: list[Path]) -> None:
    """All four are in one data URI, in their order and small, before the words."""
    async with Receiver(said("better")) as receiver:
        got = await make(receiver.url()).expand(PROMPT, pictures, seed=1)
    assert got.reason is Reason.EXPANDED
    system, user = json.loads(receiver.received[0].body)["messages"]
    assert system["content"] == EDITING
    shown, words = user["content"]
    assert words == {"type": "text", "text": PROMPT}
    head, _, data = shown["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.width * picture.height <= 768**2
        quarters = [picture.getpixel((picture.width * n // 8, 50)) for n in (1, 3, 5, 7)]
    expected = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    for quarter, colour in zip(quarters, expected, strict=True):
        assert isinstance(quarter, tuple)
        assert all(abs(one - other) < 10 for one, other in zip(quarter, colour, strict=True))


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**31, 2**63 - 1])
async def test_every_seed_is_one_for_the_other_side(make: MakeExpander, seed: int) -> None:
    """Some servers take 31 bits, and none a negative number for sure."""
    async with Receiver(said("better")) as receiver:
        await make(receiver.url()).expand(PROMPT, seed=seed)
    assert 0 <= json.loads(receiver.received[0].body)["seed"] < 2**31


async def test_the_same_again_is_not_asked_again(make: MakeExpander, pictures: list[Path]) -> None:
    """Prompt, pictures and seed decide; what failed is tried anew."""
    async with Receiver(status(500), said("better")) as receiver:
        expander = make(receiver.url())
        assert (await expander.expand(PROMPT, seed=1)).reason is Reason.FAILED
        for _ in range(2):
            await expander.expand(PROMPT, seed=1)
            await expander.expand(PROMPT, seed=2)
            await expander.expand(PROMPT, pictures, seed=1)
    assert len(receiver.received) == 4


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (status(404), "answered 404"),
        (status(500), "answered 500"),
        (status(307, "location: /elsewhere"), "answered 307"),
        (sent("no JSON, but secret"), "the answer is no chat completion"),
        (sent("{}"), "the answer is no chat completion"),
        (sent('{"choices": []}'), "the answer is no chat completion"),
        (said(None), "the answer is no chat completion"),
        (said("x" * ANSWER_BYTES), "the answer is too long"),
        (endless_body, "the answer is too long"),
        (hang_up, "broke off: RemoteProtocolError"),
    ],
)
async def test_a_failure_loses_nothing(make: MakeExpander, answer: Answer, told: str) -> None:
    """The caller's prompt is used; the log says why, and nothing of what the other side said."""
    async with Receiver(answer) as receiver:
        with capture_logs() as logs:
            got = await make(receiver.url()).expand(PROMPT, seed=1, request_id="abc")
    assert got == Expansion(PROMPT, Reason.FAILED)
    (line,) = logs
    assert (line["request_id"], line["detail"]) == ("abc", told)
    assert len(receiver.received) == 1


@pytest.mark.parametrize("answer", [silence, drip, dripping_body])
async def test_a_slow_server_is_not_waited_for(make: MakeExpander, answer: Answer) -> None:
    """Whether it is silent or dribbles, the request goes on when the time is over."""
    async with Receiver(answer) as receiver:
        expander = make(receiver.url(), expansion_seconds=SHORT_SECONDS)
        with capture_logs() as logs:
            got = await expander.expand(PROMPT, seed=1)
    assert got == Expansion(PROMPT, Reason.FAILED)
    assert logs[0]["detail"] == "no answer in 0.3 seconds"


async def test_nobody_there_and_nothing_to_show(make: MakeExpander, tmp_path: Path) -> None:
    """A closed port, a name that nobody has, a picture that is gone and one that is none."""
    async with Receiver() as receiver:
        gone = receiver.url()
        broken = tmp_path / "0.png"
        missing = await make(gone).expand(PROMPT, [broken], seed=1)
        broken.write_bytes(b"no picture")
        unreadable = await make(gone).expand(PROMPT, [broken], seed=1)
    closed = await make(gone).expand(PROMPT, seed=1)
    unknown = await make("http://nobody.invalid/v1").expand(PROMPT, seed=1)
    assert {missing, unreadable, closed, unknown} == {Expansion(PROMPT, Reason.FAILED)}
    assert not receiver.received


async def test_some_prompts_are_not_sent(make: MakeExpander) -> None:
    """Neither an empty one nor one that is longer than the model reads; an empty answer is none."""
    long = "x" * (MAX_PROMPT_CHARACTERS + 1)
    async with Receiver(said("  ")) as receiver:
        expander = make(receiver.url())
        assert await expander.expand("", seed=1) == Expansion("", Reason.EMPTY)
        assert await expander.expand(long, seed=1) == Expansion(long, Reason.TOO_LONG)
        assert not receiver.received
        assert await expander.expand(PROMPT, seed=1) == Expansion(PROMPT, Reason.EMPTY)


async def test_a_cancel_ends_the_waiting(make: MakeExpander) -> None:
    """Nothing falls back then: whoever cancelled wants no image."""
    async with Receiver(silence) as receiver:
        task = asyncio.create_task(make(receiver.url()).expand(PROMPT, seed=1))
        await receiver.wait(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_https_is_checked_against_the_operators_authorities(
    make: MakeExpander, tmp_path: Path
) -> None:
    """A certificate of a private authority holds where the settings name it, and only there."""
    certificates = ensure_certificates(tmp_path / "tls", ["localhost"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate_path, certificates.key_path)
    async with Receiver(said("better"), tls=context) as receiver:
        url = receiver.url("/v1", host="localhost")
        refused = await make(url).expand(PROMPT, seed=1)
        trusted = make(url, outbound_ca_file=certificates.ca_path)
        assert refused.reason is Reason.FAILED
        assert (await trusted.expand(PROMPT, seed=1)).reason is Reason.EXPANDED


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://10.0.0.5:8000/v1", "http://10.0.0.5:8000/v1/chat/completions"),
        ("http://vllm_1:8000/v1/", "http://vllm_1:8000/v1/chat/completions"),
        ("http://[::1]:8000", "http://[::1]:8000/chat/completions"),
        ("https://x/a/chat/completions?version=3", "https://x/a/chat/completions?version=3"),
    ],
)
async def test_base_and_whole_urls_are_taken(url: str, expected: str) -> None:
    """Private addresses too: the operator chose them."""
    assert str(completions_url(url)) == expected


@pytest.mark.parametrize("url", ["ftp://box/v1", "box:8000", "http://user:secret@box/v1", ""])
async def test_a_wrong_url_is_told_at_the_start(make: MakeExpander, url: str) -> None:
    """Not at the first request, where nobody looks."""
    with pytest.raises(ConfigurationError, match="FLUX2_EXPANSION_URL"):
        make(url)


async def test_without_a_url_there_is_none(make_settings: Callable[..., Settings]) -> None:
    """And settings for it that have no effect are an error."""
    assert RemoteExpander.of(make_settings()) is None
    for name in ("expansion_key", "expansion_model"):
        with pytest.raises(ConfigurationError, match="need FLUX2_EXPANSION_URL"):
            RemoteExpander.of(make_settings(**{name: "x"}))
