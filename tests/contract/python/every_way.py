"""Calls one endpoint in every way that fal's Python client has; prints what came back as JSON.

Arguments, each as JSON: the endpoint, and the input.
"""

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

import fal_client


def describe(update: Any) -> dict[str, Any]:
    """Return a status of the client as plain data, with the name of its class."""
    return {"kind": type(update).__name__, **asdict(update)}


def call(endpoint_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Subscribe, submit, follow and run, one after the other."""
    updates: list[Any] = []
    request_ids: list[str] = []
    subscribed = fal_client.subscribe(
        endpoint_id,
        body,
        with_logs=True,
        on_enqueue=request_ids.append,
        on_queue_update=lambda update: updates.append(describe(update)),
    )
    handle = fal_client.submit(endpoint_id, body)
    events = [describe(event) for event in handle.iter_events(with_logs=True)]
    return {
        "subscribe": subscribed,
        "updates": updates,
        "enqueued": request_ids,
        "events": events,
        "status": describe(fal_client.status(endpoint_id, handle.request_id, with_logs=True)),
        "quiet_status": describe(fal_client.status(endpoint_id, handle.request_id)),
        "get": handle.get(),
        "result": fal_client.result(endpoint_id, handle.request_id),
        "same_handle": handle == fal_client.sync_client.get_handle(endpoint_id, handle.request_id),
        "run": fal_client.run(endpoint_id, body),
    }


async def call_async(endpoint_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Do the same with the asynchronous client."""
    client = fal_client.AsyncClient()
    updates: list[Any] = []
    subscribed = await client.subscribe(
        endpoint_id,
        body,
        with_logs=True,
        on_queue_update=lambda update: updates.append(describe(update)),
    )
    handle = await client.submit(endpoint_id, body)
    events = [describe(event) async for event in handle.iter_events(with_logs=True)]
    status = await client.status(endpoint_id, handle.request_id, with_logs=True)
    return {
        "subscribe": subscribed,
        "updates": updates,
        "events": events,
        "status": describe(status),
        "get": await handle.get(),
        "result": await client.result(endpoint_id, handle.request_id),
        "run": await client.run(endpoint_id, body),
    }


def main() -> None:
    """Print one object: `sync` and `async`, each with what every way gave."""
    endpoint_id, body = map(json.loads, sys.argv[1:])
    found = {
        "sync": call(endpoint_id, body),
        "async": asyncio.run(call_async(endpoint_id, body)),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
