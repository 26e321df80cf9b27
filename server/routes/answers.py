"""The one way to make a JSON answer."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.errors import FalError, RequestError


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII: some clients cut answers between the bytes of one character."""

    def render(self, content: Any) -> bytes:
        """Encode with every character above ASCII escaped."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode("ascii")


def error_response(error: FalError, headers: Mapping[str, str] | None = None) -> Response:
    """Make the answer for an error, in fal's body and with its headers."""
    return AsciiJSONResponse(
        error.body, status_code=error.status, headers={**error.headers, **(headers or {})}
    )


async def handle_fal_error(_request: Request, error: Exception) -> Response:
    """Answer for an error of ours that a route raised."""
    if not isinstance(error, FalError):
        raise error
    return error_response(error)


async def read_json(request: Request) -> Any:
    """Parse the body as JSON, whatever its content type says (curl sends none).

    Raises `RequestError` 400 for a body that is not JSON; NaN and Infinity are not JSON.
    """
    body = await request.body()
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The request body is not valid JSON: {_reason(error)}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)[:200]
