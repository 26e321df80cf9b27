"""What a caller asks of the queue in headers and query: deadline, priority, lifetimes, webhook."""

import math

from starlette.requests import HTTPConnection

from server.admission import Wishes
from server.errors import RequestError
from server.jobs import Priority
from server.lifecycle import Lifecycle, read_lifecycle
from server.routes.auth import has_only_token

MIN_START_SECONDS = 0.1
TRUE_WORDS = ("1", "true", "yes")


def read_wishes(request: HTTPConnection, *, may_notify: bool = True) -> Wishes:
    """Read fal's request headers and query parameters; `may_notify` says whether to take a webhook.

    Who has only a token may wish what concerns its own request and nothing else: that it waits
    behind others, ends early, leaves no record or hides its images. Webhooks are signed with the
    server's name, and files take the key's room: a webhook and a lifetime are left out.

    Raises `RequestError` 400 `bad_request` for a value that cannot be read, as fal does.
    """
    headers, query = request.headers, request.query_params
    lifecycle = _lifecycle(headers.get("x-fal-object-lifecycle-preference"))
    if has_only_token(request):
        lifecycle, may_notify = Lifecycle(acl=lifecycle.acl), False
    return Wishes(
        priority=_priority(headers.get("x-fal-queue-priority", "normal")),
        start_seconds=_start_seconds(headers.get("x-fal-request-timeout")),
        no_retry=headers.get("x-fal-no-retry", "").lower() in TRUE_WORDS,
        keep_payload=headers.get("x-fal-store-io") != "0",
        file_seconds=lifecycle.seconds,
        file_acl=lifecycle.acl,
        webhook_url=(query.get("fal_webhook") or None) if may_notify else None,
        queue_limit=_queue_limit(query.get("fal_max_queue_length")),
    )


def _priority(text: str) -> Priority:
    try:
        return Priority[text.strip().upper()]
    except KeyError:
        raise _bad("X-Fal-Queue-Priority must be normal or low") from None


def _start_seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > MIN_START_SECONDS):
        raise _bad(f"X-Fal-Request-Timeout must be a number of seconds above {MIN_START_SECONDS}")
    return seconds


def _lifecycle(text: str | None) -> Lifecycle:
    try:
        return read_lifecycle(text)
    except ValueError as error:
        raise _bad(f"X-Fal-Object-Lifecycle-Preference: {error}") from None


def _queue_limit(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _bad("fal_max_queue_length must be a whole number")
    return int(text)


def _bad(detail: str) -> RequestError:
    return RequestError(400, detail, "bad_request")
