"""Asks for images with `fal.apps`, the client inside the SDK with which apps are made for fal.

Arguments: the endpoint and the input as JSON. Prints JSON.
"""

import json
import sys
from importlib.metadata import version
from typing import Any

import httpx
from fal import apps


def main() -> None:
    """Print one JSON object."""
    endpoint_id, body = map(json.loads, sys.argv[1:])
    handle = apps.submit(endpoint_id, body)
    kinds = [type(status).__name__ for status in handle.iter_events(logs=True)]
    completed: Any = handle.status(logs=True)
    streamed = [line for line in apps.stream(endpoint_id, body, path="/stream") if line]
    cancelled = apps.submit(endpoint_id, {**body, "num_images": 4})
    cancelled.cancel()
    for _ in cancelled.iter_events():
        pass
    try:
        cancelled.fetch_result()
    except httpx.HTTPStatusError as error:
        ending = error.response.status_code
    told = {
        "version": version("fal"),
        "kinds": kinds,
        "logs": [line["message"] for line in completed.logs],
        "result": handle.fetch_result(),
        "run": apps.run(endpoint_id, body),
        "streamed": streamed,
        "cancelled": ending,
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
