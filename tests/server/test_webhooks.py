"""The sender over a real store and real receivers: what is sent, to whom, and when."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest
from structlog.testing import capture_logs

from server.app import create_app
from server.delivery import Result
from server.errors import ConfigurationError
from server.gateway import make_courier
from server.settings import Settings
from server.webhooks import JITTER, RETRY_SECONDS, retry_delay
from tests.server.receivers import Receiver, hang_up, is_from_fal, status
from tests.server.webhook_box import Box

pytestmark = pytest.mark.anyio


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    """Return a box with an open store; its sender is stopped at the end."""
    async with Box(tmp_path) as box:
        yield box


async def test_every_attempt_is_signed_afresh_over_the_same_body(box: Box) -> None:
    """Receivers verify each attempt as fal's documents say, hours after the first."""
    async with Receiver(status(503), hang_up, status(200)) as receiver:
        await box.start()
        await box.finish("a", receiver.url("/hook?x=1"), '{"prompt": "\u00fc\\ud800"}')
        moments = []
        for expected, delay in (("failed", 7.0), ("failed", 14.0), ("delivered", 0.0)):
            assert await box.result() == expected
            moments.append(box.wall)
            await box.advance(delay)
        received = receiver.received
    assert len(received) == 3
    assert len({item.body for item in received}) == 1
    assert json.loads(received[0].body)["payload"] == {"prompt": "\u00fc\ud800"}
    for item, moment in zip(received, moments, strict=True):
        assert item.request_id == "a"
        assert item.headers["content-type"] == "application/json"
        assert item.headers["x-fal-webhook-timestamp"] == str(int(moment))
        assert is_from_fal(box.signer.jwks(), item.headers, item.body, moment)
        assert not is_from_fal(box.signer.jwks(), item.headers, item.body, moment + 301)
    assert await box.outbox.counts() == {"delivered": 1}


def test_ten_retries_span_two_hours() -> None:
    """As fal's: one attempt at once and ten more, each wait longer than the one before."""
    assert len(RETRY_SECONDS) == 10
    assert list(RETRY_SECONDS) == sorted(RETRY_SECONDS)
    assert 0.95 * 7200 < sum(RETRY_SECONDS) < 7200
    assert retry_delay(11, 0.5) is None


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
async def test_the_schedule_is_kept(box: Box, chance: float) -> None:
    """A dead receiver sees 11 attempts, each due exactly when the schedule and chance say."""
    box.chance = chance
    async with Receiver(status(500)) as receiver:
        await box.start()
        await box.finish("a", receiver.url())
        for attempt, delay in enumerate(RETRY_SECONDS, start=1):
            assert await box.result() == "failed"
            row = await box.row("a")
            expected = delay * (1 - JITTER + 2 * JITTER * chance)
            assert row["next_attempt_at"] - box.now == pytest.approx(expected)
            assert (row["attempts"], row["last_error"]) == (attempt, "answered 500")
            await box.advance(expected - 0.001)
            await box.settle()
            assert len(receiver.received) == attempt
            await box.advance(0.002)
        assert await box.result() == "abandoned"
        await box.advance(1e6)
        await box.settle()
        assert len(receiver.received) == 11
    assert await box.outbox.counts() == {"abandoned": 1}


@pytest.mark.parametrize("code", [301, 400, 404, 410])
async def test_a_final_answer_ends_it(box: Box, code: int) -> None:
    """What will not change is not asked twice."""
    async with Receiver(status(code)) as receiver:
        await box.start()
        await box.finish("a", receiver.url())
        assert await box.result() == "abandoned"
        assert len(receiver.received) == 1
    assert (await box.row("a"))["last_error"] == f"answered {code}"


async def test_a_refused_target_is_dropped_with_the_setting_s_name(box: Box) -> None:
    """The operator reads in the log what to set; the target hears nothing."""
    async with Receiver() as trap:
        with capture_logs() as logs:
            await box.start(None, "hook.example")
            await box.finish("a", trap.url())
            assert await box.result() == "abandoned"
        assert trap.connections == 0
    (line,) = (line for line in logs if line["event"] == "webhook abandoned")
    assert line["log_level"] == "warning"
    assert "FLUX2_WEBHOOK_ALLOW" in line["reason"]
    assert await box.outbox.counts() == {"abandoned": 1}


async def test_the_whole_server_sends_what_fal_would(
    make_settings: Callable[..., Settings],
) -> None:
    """Submitted with `fal_webhook`, run, delivered, and verified with the keys it publishes."""
    app = create_app(make_settings(webhook_allow="127.0.0.1"))
    transport = httpx2.ASGITransport(app)
    inputs = {"good": {"prompt": "a cat"}, "bad": {"seed": 1}}
    async with (
        Receiver() as receiver,
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        ids = {}
        for name, arguments in inputs.items():
            parameters = {"fal_webhook": receiver.url(f"/{name}?x=1")}
            answer = await client.post("/queue/fal-ai/flux-2", params=parameters, json=arguments)
            ids[name] = answer.json()["request_id"]
        await receiver.wait(2)
        keys = (await client.get("https://rest.fal.ai/.well-known/jwks.json")).json()
        results = {
            name: (await client.get(f"/queue/fal-ai/flux-2/requests/{request_id}")).json()
            for name, request_id in ids.items()
        }
        now = float(receiver.received[0].headers["x-fal-webhook-timestamp"])
        letters = {item.target.split("?")[0][1:]: item for item in receiver.received}
    for name, item in letters.items():
        assert is_from_fal(keys, item.headers, item.body, now)
        assert item.request_id == ids[name]
        letter = json.loads(item.body)
        assert letter["payload"] == results[name]
        assert letter["request_id"] == ids[name]
    assert json.loads(letters["good"].body)["status"] == "OK"
    assert json.loads(letters["bad"].body)["error"] == "Invalid status code: 422"


@pytest.mark.parametrize(
    "changes", [{"webhook_allow": "http://hook.example"}, {"outbound_ca_file": Path("/none.pem")}]
)
def test_wrong_settings_stop_the_start(
    make_settings: Callable[..., Settings], changes: dict[str, object]
) -> None:
    """They would be found out by lost webhooks otherwise."""
    with pytest.raises(ConfigurationError):
        create_app(make_settings(**changes))


async def test_by_default_no_private_address_gets_a_webhook(
    make_settings: Callable[..., Settings],
) -> None:
    """A new box calls nobody in its own network unless its operator has listed them."""
    courier = make_courier(make_settings())
    async with Receiver() as trap:
        verdict = await courier.deliver(trap.url(), {}, b"{}")
        assert trap.connections == 0
    await courier.close()
    assert verdict.result is Result.ABANDONED
    assert verdict.reason == (
        "refused: 127.0.0.1 is not in FLUX2_WEBHOOK_ALLOW: 127.0.0.1 is loopback"
    )


def test_the_list_is_separated_by_commas(make_settings: Callable[..., Settings]) -> None:
    """As in all settings that are lists."""
    assert make_settings().webhook_allow == ()
    assert make_settings(webhook_allow=" a.example, 10.0.0.0/8 ,").webhook_allow == (
        "a.example",
        "10.0.0.0/8",
    )
