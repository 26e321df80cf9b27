"""Asks for an image and fetches it, as any program would that knows nothing of this server.

Arguments, each as JSON: the endpoint, the input, and a URL of neither fal nor this server. Prints
as JSON what came back, and how the request for that URL ended.
"""

import hashlib
import json
import sys
from typing import Any

import fal_client
import httpx


def fetch(url: str) -> dict[str, Any]:
    """Fetch a file with nothing but the environment to go by."""
    answer = httpx.get(url)
    return {
        "status": answer.status_code,
        "content_type": answer.headers["content-type"],
        "bytes": len(answer.content),
        "sha256": hashlib.sha256(answer.content).hexdigest(),
    }


def main() -> None:
    """Print one JSON object."""
    endpoint_id, body, foreign = map(json.loads, sys.argv[1:])
    result = fal_client.subscribe(endpoint_id, body)
    handle = fal_client.submit(endpoint_id, body)
    try:
        ending = str(httpx.get(foreign).status_code)
    except httpx.HTTPError as error:
        ending = f"{type(error).__name__}: {error}"
    told = {
        "result": result,
        "file": fetch(result["images"][0]["url"]),
        "again": handle.get()["images"][0]["url"],
        "queue_url": handle.response_url,
        "foreign": ending,
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
