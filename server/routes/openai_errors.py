"""fal's errors in OpenAI's form, so that OpenAI's own clients raise what their users catch.

The form is `{"error": {"message", "type", "param", "code"}}`
(https://platform.openai.com/docs/guides/error-codes).
"""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/v1/images/"
"""Under this everything is in OpenAI's form."""

FIELDS: Mapping[str, str] = MappingProxyType(
    {"num_images": "n", "image_size": "size", "image_urls": "image", "acceleration": "quality"}
)
"""What fal's fields are called there."""

CODES: Mapping[int, str] = MappingProxyType(
    {401: "invalid_api_key", 404: "model_not_found", 413: "too_large", 429: "rate_limit_exceeded"}
)
KINDS: Mapping[int, str] = MappingProxyType({401: "authentication_error", 429: "requests"})
SHOWN_MISTAKES = 5


class OpenAIErrorsMiddleware:
    """Rewrites what the paths under `PREFIX` answer when it is an error in fal's form."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; hold back the body of an error until it is whole."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = bytearray()

        async def translate(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is None:
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    await _send_error(start, bytes(body), send)

        await self._app(scope, receive, translate)


async def _send_error(start: Message, body: bytes, send: Send) -> None:
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    status, told = openai_error(start["status"], said)
    text = json.dumps(told, ensure_ascii=True).encode("ascii")
    start = {**start, "status": status, "headers": list(start["headers"])}
    headers = MutableHeaders(scope=start)
    headers["content-type"] = "application/json"
    headers["content-length"] = str(len(text))
    await send(start)
    await send({"type": "http.response.body", "body": text})


def openai_error(status: int, body: Any) -> tuple[int, dict[str, Any]]:
    """Return status and body of what fal's form says with this status and body.

    A mistake in the input is 422 there and 400 here.
    """
    said = body if isinstance(body, Mapping) else {}
    detail = said.get("detail")
    code = said.get("error_type") or CODES.get(status)
    param = None
    if isinstance(detail, list) and detail:
        message, param, code = _read_mistakes(detail)
    else:
        message = str(detail or "The request could not be answered")
    kind = "server_error" if status >= 500 else KINDS.get(status, "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return 400 if status == 422 else status, {"error": error}


def _read_mistakes(items: Sequence[Mapping[str, Any]]) -> tuple[str, str | None, str]:
    """Return all mistakes in one text, and of the first where and what it is."""
    texts = []
    for item in items[:SHOWN_MISTAKES]:
        place = _place(item)
        texts.append(f"{place}: {item['msg']}" if place else str(item["msg"]))
    if len(items) > SHOWN_MISTAKES:
        texts.append(f"and {len(items) - SHOWN_MISTAKES} more")
    first = items[0]
    return "; ".join(texts), _place(first), str(first["type"])


def _place(item: Mapping[str, Any]) -> str | None:
    """Return the field that a mistake is in, by OpenAI's name for it; None for the whole body."""
    names = [name for name in item["loc"][1:] if isinstance(name, str)]
    return FIELDS.get(names[0], names[0]) if names else None
