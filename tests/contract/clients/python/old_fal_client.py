"""Asks for images and uploads with a `fal_client` of years ago.

Arguments: the endpoint and the input as JSON, and the path of a picture to edit, or `null` where
uploads have no way to the server. Prints as JSON the version and what came back.
"""

import asyncio
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fal_client
import httpx


def subscribe(endpoint_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask by the queue, with logs; return the result and the kinds of updates."""
    updates: list[Any] = []
    result = fal_client.subscribe(endpoint_id, body, with_logs=True, on_queue_update=updates.append)
    lines = [line["message"] for update in updates for line in getattr(update, "logs", None) or ()]
    return {
        "result": result,
        "updates": [type(update).__name__ for update in updates],
        "lines": lines,
    }


def edit(endpoint_id: str, body: dict[str, Any], path: Path) -> dict[str, Any]:
    """Upload a picture and edit it."""
    urls = [fal_client.upload(path.read_bytes(), "image/png"), fal_client.upload_file(path)]
    result = fal_client.subscribe(f"{endpoint_id}/edit", {**body, "image_urls": urls})
    return {"urls": urls, "result": result, "stored": len(httpx.get(urls[0]).content)}


def main() -> None:
    """Print one JSON object."""
    endpoint_id, body = map(json.loads, sys.argv[1:3])
    told = {
        "version": version("fal_client"),
        "subscribe": subscribe(endpoint_id, body),
        "run": fal_client.run(endpoint_id, body),
        "async": asyncio.run(fal_client.run_async(endpoint_id, body)),
        "handle": fal_client.submit(endpoint_id, body).get(),
    }
    if sys.argv[3] != "null":
        told["edit"] = edit(endpoint_id, body, Path(sys.argv[3]))
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
