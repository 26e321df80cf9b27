"""Lets the limits of fal's Python client run out; prints how it reports each, as JSON.

Arguments, each as JSON: the endpoint, the input of a request that runs until it is cancelled, and
a file that ends the request which is submitted first. The runner must be idle.
"""

import asyncio
import json
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fal_client

START, CLIENT, LONG = 1.1, 1.3, 60.0
"""Seconds. Clients refuse limits of a second and less."""

POLL_SECONDS = 0.05


def describe(error: BaseException) -> dict[str, Any]:
    """Return what the client's own error says; any other one ends the script."""
    if isinstance(error, fal_client.FalClientTimeoutError):
        return {"kind": "client", "request_id": error.request_id}
    if isinstance(error, fal_client.FalClientHTTPError):
        return {
            "kind": "http",
            "status_code": error.status_code,
            "error_type": error.error_type,
            "timeout_type": error.response.headers.get("x-fal-request-timeout-type"),
            "request_id": error.response.headers.get("x-fal-request-id"),
        }
    raise error


def wait_for(kind: type, endpoint_id: str, request_id: str) -> None:
    """Return once the status is of that kind."""
    handle = fal_client.sync_client.get_handle(endpoint_id, request_id)
    for status in handle.iter_events(interval=POLL_SECONDS):
        if isinstance(status, kind):
            return


def ways(body: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name the calls whose limits run out: the method, and its arguments."""
    return {
        "subscribe_start": ("subscribe", {"arguments": body, "start_timeout": START}),
        "run_start": ("run", {"arguments": body, "start_timeout": START}),
        "subscribe_client": (
            "subscribe",
            {"arguments": body, "client_timeout": CLIENT, "start_timeout": LONG},
        ),
        "subscribe_both": ("subscribe", {"arguments": body, "client_timeout": CLIENT}),
    }


def call(endpoint_id: str, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Make one call of the synchronous client, which must fail."""
    try:
        getattr(fal_client, method)(endpoint_id, **arguments)
    except fal_client.FalClientError as error:
        return describe(error)
    raise SystemExit(f"{method} did not fail")


def call_all(endpoint_id: str, body: Any) -> dict[str, Any]:
    """Make all calls at once, each in a thread."""
    with ThreadPoolExecutor() as pool:
        futures = {
            name: pool.submit(call, endpoint_id, method, arguments)
            for name, (method, arguments) in ways(body).items()
        }
        return {name: future.result() for name, future in futures.items()}


async def call_all_async(endpoint_id: str, body: Any) -> dict[str, Any]:
    """Make all calls of the asynchronous client at once."""
    client = fal_client.AsyncClient()
    named = ways(body)
    calls = (
        getattr(client, method)(endpoint_id, **arguments) for method, arguments in named.values()
    )
    ends = await asyncio.gather(*calls, return_exceptions=True)
    return {name: describe(end) for name, end in zip(named, ends, strict=True)}


def main() -> None:
    """Print what came of every way, first for requests that wait, then for one that runs."""
    endpoint_id, body, gate = map(json.loads, sys.argv[1:])
    # It tells that `start_timeout` is above `client_timeout`, as here it is meant to be.
    warnings.simplefilter("ignore", UserWarning)
    gated = {**body, "prompt": f"{body['prompt']} {gate}"}
    first = fal_client.submit(endpoint_id, gated, start_timeout=START)
    wait_for(fal_client.InProgress, endpoint_id, first.request_id)
    waiting = {"sync": call_all(endpoint_id, body)}
    waiting["async"] = asyncio.run(call_all_async(endpoint_id, body))
    still = type(first.status()).__name__
    Path(gate).touch()
    begun = {"status": still, "images": len(first.get()["images"])}
    running = call(endpoint_id, "subscribe", {"arguments": body, "client_timeout": CLIENT})
    wait_for(fal_client.Completed, endpoint_id, running["request_id"])
    json.dump({"waiting": waiting, "first": begun, "running": running}, sys.stdout)


if __name__ == "__main__":
    main()
