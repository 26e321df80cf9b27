"""The runner process seen from the gateway; its life in the queue is in test_dispatcher."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.types import GenerationRequest, GenerationSettings, LoraUse
from server.gateway import make_runner as make_runner_for_device
from server.runners.connection import RunnerAbsentError, RunnerDiedError
from server.runners.local import GenerationFailedError, LocalRunner, RunnerState
from server.runners.messages import Progress
from server.schemas import OutputFormat
from server.settings import Settings

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 30


def make_runner(settings: Settings) -> LocalRunner:
    """Make a runner with the settings' pipeline."""
    return make_runner_for_device(settings, "cpu")


def ignore(*_news: object) -> None:
    """Hear of progress and do nothing."""


def make_request(prompt: str, request_id: str = "r") -> GenerationRequest:
    """Make a request whose prompt tells the fault pipeline what to do."""
    return GenerationRequest(
        request_id=request_id,
        prompt=prompt,
        seed=3,
        num_images=2,
        settings=GenerationSettings(
            width=64, height=64, num_inference_steps=4, guidance_scale=2.5, check_safety=False
        ),
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
    generated = await runner.run(make_request("plain"), OutputFormat.PNG, progress.append, ignore)
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
    assert states == [RunnerState.READY, RunnerState.STOPPED]
    assert runner.pid is None


async def test_the_device_is_free_before_the_images_are_there(
    settings: Settings, tmp_path: Path
) -> None:
    """Two requests may be under way: each gets its own images, whichever is done first."""
    runner = make_runner(settings)
    await runner.start()
    gate, free, images = tmp_path / "gate", asyncio.Event(), []
    request = make_request(f"encode-wait {gate}", "one")
    run = runner.run(request, OutputFormat.PNG, ignore, free.set)
    first = asyncio.create_task(run)
    await free.wait()
    hold = make_request(f"hold {gate}", "two")
    second = asyncio.create_task(
        runner.run(hold, OutputFormat.JPEG, lambda _progress: gate.touch(), ignore)
    )
    for task in (first, second):
        generated = await task
        images.append({image.content_type for image, _ in generated.images.values()})
        assert sorted(generated.images) == [0, 1]
    await runner.stop()
    assert images == [{"image/png"}, {"image/jpeg"}]


@pytest.mark.parametrize(
    ("prompt", "limits", "seconds"),
    [
        pytest.param("hold", {"stage_seconds": 0.6}, "0.6", id="encoding"),
        pytest.param("hang", {"step_seconds": 0.5}, "0.5", id="drawing"),
    ],
)
async def test_each_request_has_a_limit_of_its_own(
    make_settings: Callable[..., Settings], prompt: str, limits: dict[str, float], seconds: str
) -> None:
    """Neither do steps excuse an encoding that hangs, nor the other way round; both lose."""
    runner = make_runner(make_settings(**limits))
    await runner.start()
    free = asyncio.Event()
    request = make_request("encode-wait /no/such/file", "one")
    first = asyncio.create_task(runner.run(request, OutputFormat.PNG, ignore, free.set))
    await free.wait()
    request = make_request(prompt, "two")
    second = asyncio.create_task(runner.run(request, OutputFormat.PNG, ignore, ignore))
    for task in (first, second):
        with pytest.raises(RunnerDiedError, match=f"hung: silent for {seconds} s"):
            await task
    assert runner.problem == f"the runner hung: silent for {seconds} s"
    assert runner.pid is None


async def test_every_request_has_a_last_word_whatever_cannot_be_said(
    make_settings: Callable[..., Settings],
) -> None:
    """What no message can hold costs the request, or is told by its number; the runner is well."""
    runner = make_runner(make_settings(stage_seconds=5.0))
    await runner.start()
    pid, failures = runner.pid, []
    for prompt in ("refuse-lora", "unsayable"):
        with pytest.raises(GenerationFailedError) as caught:
            await runner.run(make_request(prompt), OutputFormat.PNG, ignore, ignore)
        failures.append(caught.value)
    generated = await runner.run(make_request("plain"), OutputFormat.PNG, ignore, ignore)
    assert sorted(generated.images) == [0, 1]
    assert runner.pid == pid
    await runner.stop()
    assert [(failure.reason, failure.index) for failure in failures] == [
        ("lora_refused", 1),
        ("error", 0),
    ]
    assert str(failures[0]).startswith("\\ud800 is no linear layerxxx")
    assert len(str(failures[0])) < 3000


async def test_memory_is_freed_for_what_a_request_brings_too(settings: Settings) -> None:
    """LoRAs that come to the device when that is full are fetched once more, with room made."""
    runner = make_runner(settings)
    await runner.start()
    request = make_request("plain")
    request = replace(request, settings=replace(request.settings, loras=(LoraUse(Path("/a")),)))
    generated = await runner.run(request, OutputFormat.PNG, ignore, ignore)
    await runner.stop()
    assert sorted(generated.images) == [0, 1]


async def test_progress_of_loading_is_kept(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """The newest word counts for as long as the runner loads."""
    runner = make_runner(make_settings(pipeline_factory="fault_pipelines:gradual"))
    starting = asyncio.create_task(runner.start())
    seen = []
    async with asyncio.timeout(WAIT_SECONDS):
        while ("warm_up", 0.25) not in seen:
            if runner.loading:
                seen.append((runner.loading.stage, runner.loading.fraction))
            await asyncio.sleep(0)
    assert (runner.state, runner.problem) == (RunnerState.LOADING, "the runner is loading")
    (tmp_path / "gate").touch()
    await starting
    assert (runner.state, runner.problem, runner.loading) == (RunnerState.READY, None, None)
    await runner.stop()
    assert seen[0] == ("start", 0.0)


async def test_how_it_died_is_told(settings: Settings) -> None:
    """A killed child is named with its signal, and the next start makes a new one."""
    runner = make_runner(settings)
    await runner.start()
    first = runner.pid
    with pytest.raises(RunnerDiedError, match="killed by SIGKILL"):
        await runner.run(make_request("die"), OutputFormat.PNG, ignore, ignore)
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
    """There is nothing to send an order to, and that is nobody's death."""
    runner = make_runner(settings)
    with pytest.raises(RunnerAbsentError, match="not running"):
        await runner.run(make_request("plain"), OutputFormat.PNG, ignore, ignore)
