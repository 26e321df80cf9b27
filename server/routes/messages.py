"""What goes over a realtime websocket: inputs in MessagePack or JSON, answers in the same, errors.

Errors are always JSON text: fal's Python client looks for them nowhere else.
"""

import base64
import json
import math
from http import HTTPStatus
from typing import Any

import msgpack

from server.errors import FalError, RequestError
from server.routes.answers import MAX_VALUES, is_too_deep, parse_json

Message = str | bytes

MAX_ITEMS = 1000
"""Most items of one array or map: MessagePack takes room for as many as it says before the first of
them is read."""

MAX_REASONS = 3
MAX_TAG_CHARACTERS = 200
UNREADABLE = "The message is not one input in MessagePack (binary) or JSON (text)"
UNAUTHORIZED_CODE = 1008
"""The close code of RFC 6455 for what is against the rules here."""

IDLE_MESSAGE = json.dumps(
    {"type": "x-fal-error", "error": "TIMEOUT", "reason": "no inputs, reconnect when needed!"}
)
"""Word for word what fal's applications send; its JavaScript client takes it for no error."""


class _TooManyError(ValueError):
    """The message has more values than an input may have."""


def read_message(message: Message) -> Any:
    """Return the input in a message, as JSON would have it. Raises `FalError` for any other."""
    if isinstance(message, str):
        return parse_json(message.encode("utf-8"))
    room = MAX_VALUES

    def count(items: list[Any]) -> list[Any]:
        nonlocal room
        room -= len(items) + 1
        if room < 0:
            raise _TooManyError
        return items

    try:
        value = msgpack.unpackb(
            message,
            raw=False,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            list_hook=count,
            object_pairs_hook=lambda pairs: dict(count(pairs)),
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RequestError(400, UNREADABLE, "bad_request") from error
    if is_too_deep(value) or not _is_json(value):
        raise RequestError(400, UNREADABLE, "bad_request")
    return value


def _is_json(value: Any) -> bool:
    """Say whether JSON has such a value too: it has no bytes, no times and no infinities."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | bool | int)


def tag_of(value: Any) -> dict[str, str]:
    """Return the `request_id` that a caller put into an input, to be put into what answers it.

    Inputs may be dropped for newer ones, so order alone does not tell which was answered.
    """
    tag = value.get("request_id") if isinstance(value, dict) else None
    return {"request_id": tag[:MAX_TAG_CHARACTERS]} if isinstance(tag, str) else {}


def write_answer(body: str, tag: dict[str, str], binary: bool) -> Message:
    """Return a result, JSON text, as a message: with raw images where it is binary."""
    answer = {**json.loads(body), **tag}
    if not binary:
        return json.dumps(answer, ensure_ascii=True, allow_nan=False)
    if isinstance(answer.get("images"), list):
        answer["images"] = [_raw(image) for image in answer["images"]]
    packed: bytes = msgpack.packb(answer, use_bin_type=True)
    return packed


def _raw(image: Any) -> Any:
    """Return fal's raw image for one whose URL is a data URI."""
    header, separator, data = str(image["url"]).partition(";base64,")
    if not (separator and header.startswith("data:")):
        return image
    return {
        "content": base64.b64decode(data),
        "content_type": image["content_type"],
        "width": image["width"],
        "height": image["height"],
    }


def error_message(error: FalError, tag: dict[str, str]) -> str:
    """Return fal's error, with the words of the same error in HTTP beside it."""
    detail = error.body.get("detail", "")
    if isinstance(detail, list):
        word = "INVALID_INPUT"
        reason = "; ".join(map(_reason, detail[:MAX_REASONS]))
    else:
        word = (error.error_type or _phrase(error.status)).upper()
        reason = str(detail)
    return _error(word, reason, {"status_code": error.status, "detail": detail, **tag})


def unauthorized_message() -> str:
    """Return the error that makes fal's JavaScript client get another token.

    It knows it by `status` and `error`; the Python client, which raises it, by its type.
    """
    reason = "The token is expired, is for another application, or never was one of ours"
    return _error("Unauthorized", reason, {"status": "error"})


def _error(word: str, reason: str, more: dict[str, Any]) -> str:
    body = {"type": "x-fal-error", "error": word, "reason": reason, **more}
    return json.dumps(body, ensure_ascii=True, allow_nan=False)


def _reason(item: Any) -> str:
    return f"{'.'.join(map(str, item['loc']))}: {item['msg']}"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase.replace(" ", "_")
    except ValueError:
        return "error"
