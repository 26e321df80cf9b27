"""Queues requests behind a long one and cancels them all, with fal's Python client.

Arguments, each as JSON: the input of the long request, to `fal-ai/flux-2`, and a list of pairs
of endpoint and input. Prints what happened as JSON.
"""

import asyncio
import json
import sys
from typing import Any

import fal_client


def failure(call: Any, *arguments: Any) -> dict[str, Any]:
    """Make a call that must fail; return what the client's own error says of it."""
    try:
        call(*arguments)
    except fal_client.FalClientHTTPError as error:
        return {
            "status_code": error.status_code,
            "message": error.message,
            "text": str(error),
            "error_type": error.error_type,
            "request_id": error.response_headers.get("x-fal-request-id"),
        }
    raise SystemExit("the call did not fail")


def wait_until_running(handle: Any) -> None:
    """Follow the events until the request is being worked on."""
    for event in handle.iter_events():
        if isinstance(event, fal_client.InProgress):
            return
    raise SystemExit("the long request ended before it was seen running")


async def cancel_async(endpoint_id: str, request_id: str) -> None:
    """Cancel with the asynchronous client."""
    await fal_client.AsyncClient().cancel(endpoint_id, request_id)


def main() -> None:
    """Print positions in the queue, and how each request ended."""
    long_body, waiting = map(json.loads, sys.argv[1:])
    long = fal_client.submit("fal-ai/flux-2", long_body)
    wait_until_running(long)
    handles = [fal_client.submit(endpoint_id, body) for endpoint_id, body in waiting]
    positions = [handle.status().position for handle in handles]
    unfinished = failure(fal_client.client._request, long.client, "GET", long.response_url)
    fal_client.cancel(waiting[0][0], handles[0].request_id)
    positions_after = [handle.status().position for handle in handles[1:]]
    asyncio.run(cancel_async(waiting[1][0], handles[1].request_id))
    for handle in handles[2:]:
        handle.cancel()
    long.cancel()
    ends = [failure(handle.get) for handle in (long, *handles)]
    found = {
        "positions": positions,
        "positions_after": positions_after,
        "unfinished": unfinished,
        "ends": ends,
        "request_ids": [handle.request_id for handle in (long, *handles)],
        "second_cancel": failure(handles[0].cancel),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
