"""Messages: what one side frames, the other side reads, and nothing else."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipelines.types import (
    Acceleration,
    GenerationRequest,
    GenerationSettings,
    LoadOptions,
    Stage,
)
from pipelines.verdicts import Reason
from server.runners.messages import (
    FROM_RUNNER,
    LENGTHS,
    TO_RUNNER,
    Cancel,
    Done,
    Drawn,
    Failed,
    FromRunner,
    Image,
    Load,
    LoadFailed,
    Loading,
    Progress,
    Ready,
    Run,
    ToRunner,
    from_runner,
    to_runner,
)
from server.schemas import OutputFormat

REQUEST = GenerationRequest(
    request_id="r",
    prompt="snow ❄",
    seed=-(2**63),
    num_images=2,
    settings=GenerationSettings(
        width=512,
        height=768,
        num_inference_steps=3,
        guidance_scale=0.1 + 0.2,
        acceleration=Acceleration.HIGH,
        sigmas=(1.0, 0.6509, 0.00031),
    ),
    reference_images=(Path("/spool/r/0.png"),),
)


@pytest.mark.parametrize(
    "message",
    [
        Load(pipeline_factory="a:b", options=LoadOptions(model=Path("/m"), device="cuda:1")),
        Load(pipeline_factory="a:b", options=LoadOptions(model=Path("/n"), dtype="float32")),
        Cancel(request_id="r"),
    ],
)
def test_orders_survive_the_frame(message: ToRunner) -> None:
    """What the gateway says arrives as the same value."""
    frame = to_runner(message)
    header_bytes, payload_bytes = LENGTHS.unpack(frame[: LENGTHS.size])
    assert (payload_bytes, len(frame)) == (0, LENGTHS.size + header_bytes)
    assert TO_RUNNER.validate_json(frame[LENGTHS.size :]) == message


def test_a_request_survives_the_frame_exactly() -> None:
    """Seeds at the limit, floats and text of any kind come through to the last bit."""
    message = Run(request=REQUEST, output_format=OutputFormat.WEBP)
    assert TO_RUNNER.validate_json(to_runner(message)[LENGTHS.size :]) == message


@pytest.mark.parametrize(
    "message",
    [
        Loading(stage="transformer", fraction=0.43),
        Ready(description="tiny on cpu", load_seconds=1.5),
        LoadFailed(reason="x: missing\ny: missing"),
        Progress(request_id="r", stage=Stage.DENOISE, image_index=1, step=2, steps=28),
        Image(
            request_id="r",
            index=0,
            content_type="image/png",
            width=1,
            height=2,
            verdict=Reason.NSFW,
            has_nsfw_concept=True,
        ),
        Drawn(request_id="r"),
        Done(request_id="r", prompt="❄", timings={"inference": 0.25}, applied={"steps": "8"}),
        Failed(request_id="r", reason="out_of_memory", detail="x"),
        Failed(request_id="r", reason="reference_refused", detail="x", index=3),
        Failed(request_id="r", reason="lora_refused", detail="x", index=2),
    ],
)
def test_answers_survive_the_frame_with_their_payload(message: FromRunner) -> None:
    """What the runner says arrives as the same value, with its bytes behind it."""
    frame = from_runner(message, b"\x00\xffbytes")
    header_bytes, payload_bytes = LENGTHS.unpack(frame[: LENGTHS.size])
    header = frame[LENGTHS.size : LENGTHS.size + header_bytes]
    assert FROM_RUNNER.validate_json(header) == message
    assert frame[-payload_bytes:] == b"\x00\xffbytes"


@pytest.mark.parametrize("header", [b"", b"{}", b'{"kind": "format_disk"}', b"\x80\x04N."])
def test_anything_else_is_refused(header: bytes) -> None:
    """An unknown word, and a pickle, are errors and not actions."""
    with pytest.raises(ValidationError):
        FROM_RUNNER.validate_json(header)
