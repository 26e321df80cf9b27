"""Our exceptions, and their translation into fal's two error bodies.

fal answers errors of the platform with `{"detail": "<text>", "error_type": "<type>"}` and errors
of the input or the model with `{"detail": [{"loc", "msg", "type", ...}]}`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from pydantic import ValidationError

ERROR_PAGE = "https://docs.fal.ai/errors#"
ECHO_LIMIT_CHARACTERS = 512
"""Longer strings are cut when an error repeats its input: it may be megabytes of a data URI."""

ECHO_LIMIT_ITEMS = 1000
"""Of everything that one error repeats, and of what is nested in it, only this much is told."""

ECHO_LIMIT_DEPTH = 100
ERROR_LIMIT = 100
"""Most mistakes that one answer lists: a body may have as many as it has values."""

LONG_INTEGER = 2**64
"""From here on an integer is repeated as text: few readers of JSON take it for a number, and
Python itself refuses to write one of more than 4300 digits."""


class ConfigurationError(Exception):
    """The operator's settings cannot work; the message says what to change."""


class FalError(Exception):
    """An answer that is not a success, with its HTTP status, headers and JSON body."""

    def __init__(
        self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = dict(body)
        self.headers = dict(headers or {})

    @property
    def error_type(self) -> str | None:
        """The word fal has for a platform error; None for errors of the input."""
        error_type = self.body.get("error_type")
        return error_type if isinstance(error_type, str) else None


class RequestError(FalError):
    """An error of the platform: the queue, a runner, a deadline, a key."""

    def __init__(
        self,
        status: int,
        detail: str,
        error_type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        body = {"detail": detail}
        if error_type:
            body["error_type"] = error_type
            headers = {"x-fal-error-type": error_type, **(headers or {})}
        super().__init__(status, body, headers)


class UnknownRequestError(FalError):
    """The request id is unknown, expired, of another application, or of another key."""

    def __init__(self) -> None:
        super().__init__(404, {"status": "NOT_FOUND"})


class InputError(FalError):
    """The input was refused: a 422 with one entry for each mistake. It costs the caller nothing."""

    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        detail = [json_safe(item) for item in items[:ERROR_LIMIT]]
        if len(items) > ERROR_LIMIT:
            message = f"{len(items) - ERROR_LIMIT} further errors are not listed"
            detail.append(
                {"type": "too_many_errors", "loc": ["body"], "msg": message, "input": None}
            )
        super().__init__(
            422,
            {"detail": detail},
            {"x-fal-billable-units": "0", "x-fal-needs-retry": "false"},
        )


@runtime_checkable
class Refusal(Protocol):
    """An exception that says in fal's words why a file cannot be had; `str` is its message."""

    error_type: str
    ctx: Mapping[str, Any] | None


def content_error(
    error_type: str,
    message: str,
    *,
    loc: Sequence[str | int],
    value: Any,
    ctx: Mapping[str, Any] | None = None,
) -> InputError:
    """Make the error for content that parsed but cannot be used, such as `image_load_error`.

    Keys are in the order in which fal emits them; `ctx` is left out when empty.
    """
    item: dict[str, Any] = {
        "loc": ["body", *loc],
        "msg": message,
        "type": error_type,
        "url": ERROR_PAGE + error_type,
    }
    if ctx:
        item["ctx"] = dict(ctx)
    item["input"] = value
    return InputError([item])


def field_errors(error: ValidationError) -> InputError:
    """Translate pydantic's findings: its own types, `loc` under `body`, and no `url`."""
    return InputError(
        [
            {
                "type": item["type"],
                "loc": ["body", *item["loc"]],
                "msg": item["msg"],
                "input": item["input"],
                **({"ctx": item["ctx"]} if item.get("ctx") else {}),
            }
            for item in error.errors(include_url=False)
        ]
    )


def json_safe(value: Any) -> Any:
    """Return `value` as JSON can carry it: no NaN or Infinity, no lone surrogates, no flood.

    Error bodies repeat the caller's input, and what was invalid going in must not break the
    answer coming out.
    """
    return _echo(value, iter(range(ECHO_LIMIT_ITEMS)), ECHO_LIMIT_DEPTH)


def _echo(value: Any, allowance: Iterator[int], depth: int) -> Any:
    """Copy the value; `allowance` is shared by all that is nested in it, and ends."""
    if isinstance(value, Mapping | list | tuple):
        if depth == 0:
            return "..."
        # `zip` asks the allowance first, so that it stops before it takes an item too many.
        if isinstance(value, Mapping):
            return {
                str(_echo(key, allowance, 0)): _echo(item, allowance, depth - 1)
                for _, (key, item) in zip(allowance, value.items(), strict=False)
            }
        return [
            _echo(item, allowance, depth - 1) for _, item in zip(allowance, value, strict=False)
        ]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < LONG_INTEGER else _describe_integer(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return f"<binary {len(value)} bytes>"
    text = value if isinstance(value, str) else str(value)
    cut = text[:ECHO_LIMIT_CHARACTERS] + "..." * (len(text) > ECHO_LIMIT_CHARACTERS)
    return cut.encode("utf-8", "replace").decode("utf-8")


def _describe_integer(value: int) -> str:
    try:
        return _echo(str(value), iter(()), 0)  # type: ignore[no-any-return]
    except ValueError:
        return f"<integer of {value.bit_length()} bits>"
