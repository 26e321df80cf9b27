"""Realtime messages: what is an input, what is none, and the form of answers and errors."""

import base64
import json
import struct
from typing import Any

import msgpack
import pytest

from server.errors import FalError, InputError, RequestError
from server.routes.answers import MAX_DEPTH, MAX_VALUES
from server.routes.messages import (
    MAX_ITEMS,
    MAX_TAG_CHARACTERS,
    error_message,
    read_message,
    tag_of,
    unauthorized_message,
    write_answer,
)

INPUT = {"prompt": "é", "seed": 2**63 - 1, "image_urls": ["a", "b"], "x": [None, True, 1.5, {}]}
IMAGE = {
    "url": "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8picture").decode("ascii"),
    "content_type": "image/jpeg",
    "file_name": "a.jpeg",
    "file_size": 9,
    "width": 512,
    "height": 768,
}


def nest(depth: int) -> Any:
    """Return a list in a list, and so on."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def test_both_forms_of_an_input() -> None:
    """MessagePack in binary messages and JSON in text give the same."""
    assert read_message(msgpack.packb(INPUT)) == INPUT
    assert read_message(json.dumps(INPUT)) == INPUT


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x01\x01",
        b'{"prompt": "json in binary"}',
        msgpack.packb({"prompt": b"bytes"}),
        msgpack.packb({b"prompt": "x"}),
        msgpack.packb({1: "x"}),
        msgpack.packb({"prompt": "x", "seed": float("nan")}),
        msgpack.packb({"prompt": "x", "at": msgpack.Timestamp(1)}),
        msgpack.packb({"prompt": "x", "at": msgpack.ExtType(5, b"x")}),
        b"\xa1\xff",
        msgpack.packb(nest(MAX_DEPTH + 1)),
        b"\x91" * 100_000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        msgpack.packb([0] * (MAX_ITEMS + 1)),
        b"\xdc" + struct.pack(">H", MAX_ITEMS) + (b"\xdc\x03\xe8" + b"\x90" * 1000) * MAX_ITEMS,
    ],
)
def test_what_is_no_input(message: bytes) -> None:
    """It is refused as JSON of that kind would be, and without taking its room first."""
    with pytest.raises(RequestError) as caught:
        read_message(message)
    assert (caught.value.status, caught.value.error_type) == (400, "bad_request")


def test_as_many_values_as_in_json() -> None:
    """The sum over all lists and maps counts, not each alone."""
    row = [0] * (MAX_ITEMS - 1)
    rows = MAX_VALUES // MAX_ITEMS
    assert len(read_message(msgpack.packb([row] * (rows - 1)))) == rows - 1
    with pytest.raises(RequestError):
        read_message(msgpack.packb([row] * (rows + 1)))


def test_wrong_json_is_told_as_in_http() -> None:
    """With the same error."""
    with pytest.raises(InputError, match="json_invalid"):
        read_message("{")


def test_a_tag_goes_along() -> None:
    """What a caller put into an input, if it is text, and no more of it than is sensible."""
    assert tag_of({"request_id": "mine"}) == {"request_id": "mine"}
    assert tag_of({"request_id": "x" * 1000}) == {"request_id": "x" * MAX_TAG_CHARACTERS}
    others: list[Any] = [{"request_id": 5}, {}, [], None, "text"]
    for other in others:
        assert tag_of(other) == {}


def test_answers_in_the_form_of_the_question() -> None:
    """In MessagePack with raw images, in JSON as the result has them; nothing else changes."""
    body = json.dumps({"images": [IMAGE], "seed": 5})
    packed = write_answer(body, {"request_id": "a"}, binary=True)
    assert msgpack.unpackb(packed) == {
        "images": [
            {
                "content": b"\xff\xd8picture",
                "content_type": "image/jpeg",
                "width": 512,
                "height": 768,
            }
        ],
        "seed": 5,
        "request_id": "a",
    }
    assert json.loads(write_answer(body, {}, binary=False)) == json.loads(body)


@pytest.mark.parametrize(
    ("error", "word", "reason"),
    [
        (RequestError(429, "The queue is full", "queue_full"), "QUEUE_FULL", "The queue is full"),
        (RequestError(413, "Too long"), "REQUEST_ENTITY_TOO_LARGE", "Too long"),
        (FalError(422, {"detail": "text"}), "UNPROCESSABLE_ENTITY", "text"),
        (FalError(499, {"detail": "gone"}), "ERROR", "gone"),
        (
            InputError(
                [{"loc": ["body", "seed"], "msg": f"no {n}", "type": "t"} for n in range(9)]
            ),
            "INVALID_INPUT",
            "body.seed: no 0; body.seed: no 1; body.seed: no 2",
        ),
    ],
)
def test_errors_are_fal_s(error: FalError, word: str, reason: str) -> None:
    """A word and a reason for people, and the whole of it for programs."""
    told = json.loads(error_message(error, {"request_id": "a"}))
    assert told["type"] == "x-fal-error"
    assert told["error"].replace("CONTENT", "ENTITY") == word
    assert told["reason"] == reason
    assert told["status_code"] == error.status
    assert told["detail"] == error.body["detail"]
    assert told["request_id"] == "a"
    assert "status" not in told  # which fal's JavaScript client reads on its own


def test_unauthorized_is_known_to_both_clients() -> None:
    """JavaScript's knows it by these two words, Python's by the type."""
    told = json.loads(unauthorized_message())
    assert (told["status"], told["error"]) == ("error", "Unauthorized")
    assert told["type"] == "x-fal-error"
