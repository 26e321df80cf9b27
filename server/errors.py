"""Our exceptions, and their translation into fal's two error bodies.

fal answers errors of the platform with `{"detail": "<text>", "error_type": "<type>"}` and errors
of the input or the model with `{"detail": [{"loc", "msg", "type", ...}]}`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

ERROR_PAGE = "https://docs.fal.ai/errors#"
ECHO_LIMIT_CHARACTERS = 512
"""Longer strings are cut when an error repeats its input: it may be megabytes of a data URI."""


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
        super().__init__(
            422,
            {"detail": [json_safe(item) for item in items]},
            {"x-fal-billable-units": "0", "x-fal-needs-retry": "false"},
        )


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
    if isinstance(value, str):
        cut = value[:ECHO_LIMIT_CHARACTERS] + "..." * (len(value) > ECHO_LIMIT_CHARACTERS)
        return cut.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bytes):
        return f"<binary {len(value)} bytes>"
    if isinstance(value, Mapping):
        return {str(json_safe(key)): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return json_safe(str(value))
