"""Streams one input with fal's Python client, blocking and async; prints the events as JSON.

Arguments, each as JSON: the endpoint, the input, and a wrong input.
"""

import asyncio
import json
import sys
from typing import Any

import fal_client


async def stream_async(endpoint_id: str, body: Any) -> list[Any]:
    """Collect the events of a fresh asynchronous client."""
    return [event async for event in fal_client.AsyncClient().stream(endpoint_id, body)]


def failure(endpoint_id: str, body: Any) -> dict[str, Any]:
    """Stream what must fail; return the events before, and what is raised."""
    events: list[Any] = []
    try:
        events.extend(fal_client.stream(endpoint_id, body))
    except Exception as error:  # noqa: BLE001  (whatever the client raises)
        return {"name": type(error).__name__, "message": str(error), "events": len(events)}
    raise SystemExit("the stream did not fail")


def main() -> None:
    """Print one object."""
    endpoint_id, body, wrong = map(json.loads, sys.argv[1:])
    found = {
        "sync": list(fal_client.stream(endpoint_id, body)),
        "async": asyncio.run(stream_async(endpoint_id, body)),
        "wrong": failure(endpoint_id, wrong),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
