"""The runner process seen from the gateway; its life in the queue is in test_dispatcher."""

import json
import os
import signal
from collections.abc import Callable

import pytest

from pipelines.types import GenerationRequest, GenerationSettings
from server.gateway import make_runner as make_runner_for_device
from server.runners.local import LocalRunner, RunnerDiedError, RunnerState
from server.runners.messages import Progress
from server.schemas import OutputFormat
from server.settings import Settings

pytestmark = pytest.mark.anyio


def make_runner(settings: Settings) -> LocalRunner:
    """Make a runner with the settings' pipeline."""
    return make_runner_for_device(settings, "cpu")


def make_request(prompt: str) -> GenerationRequest:
    """Make a request whose prompt tells the fault pipeline what to do."""
    return GenerationRequest(
        request_id="r",
        prompt=prompt,
        seed=3,
        num_images=2,
        settings=GenerationSettings(width=64, height=64, num_inference_steps=4, guidance_scale=2.5),
    )


async def test_the_child_is_offline_and_knows_no_key(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub libraries are told to stay off the network before they are imported."""
    monkeypatch.setenv("FLUX2_API_KEY", "id:secret")
    runner = make_runner(make_settings(pipeline_factory="fault_pipelines:describe_environment"))
    await runner.start()
    environment = json.loads(runner.description or "")
    await runner.stop()
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert not [name for name in environment if name.startswith("FLUX2_")]
    allocator = dict(entry.split(":") for entry in environment["PYTORCH_ALLOC_CONF"].split(","))
    assert allocator == {"expandable_segments": "True", "pinned_max_round_threshold_mb": "1"}


async def test_images_come_back_in_order_with_their_bytes(settings: Settings) -> None:
    """A run gives every image as a file's bytes, and the progress on the way."""
    runner = make_runner(settings)
    await runner.start()
    states = [runner.state]
    progress: list[Progress] = []
    generated = await runner.run(make_request("plain"), OutputFormat.PNG, progress.append)
    assert sorted(generated.images) == [0, 1]
    assert all(data.startswith(b"\x89PNG") for _, data in generated.images.values())
    assert generated.done is not None
    assert generated.done.timings["inference"] >= 0
    assert [(item.stage, item.image_index) for item in progress] == [
        ("encode", 0),
        ("decode", 0),
        ("decode", 1),
    ]
    await runner.stop()
    states.append(runner.state)
    assert states == [RunnerState.IDLE, RunnerState.STOPPED]
    assert runner.pid is None


async def test_how_it_died_is_told(settings: Settings) -> None:
    """A killed child is named with its signal, and the next start makes a new one."""
    runner = make_runner(settings)
    await runner.start()
    first = runner.pid
    with pytest.raises(RunnerDiedError, match="killed by SIGKILL"):
        await runner.run(make_request("die"), OutputFormat.PNG, lambda _progress: None)
    problems = [runner.problem]
    await runner.start()
    problems.append(runner.problem)
    assert problems == ["the runner was killed by SIGKILL", None]
    assert runner.pid not in (first, None)
    await runner.stop()


async def test_a_child_that_does_not_listen_is_killed(settings: Settings) -> None:
    """A stopped process cannot notice that the socket closed; it is ended all the same."""
    runner = make_runner(settings)
    await runner.start()
    pid = runner.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await runner.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_using_it_before_its_start_is_an_error(settings: Settings) -> None:
    """There is nothing to send an order to."""
    runner = make_runner(settings)
    with pytest.raises(RunnerDiedError, match="not running"):
        await runner.run(make_request("plain"), OutputFormat.PNG, lambda _progress: None)
