"""Asks for images by realtime with fal's Python client, blocking and async; prints what comes.

Arguments, each as JSON: the endpoint, an input, a wrong one, and whether to go by a token.
"""

import asyncio
import base64
import json
import sys
from typing import Any

import fal_client


def plain(answer: Any) -> Any:
    """Return an answer as JSON can hold it: raw images in base64."""
    for image in answer.get("images", ()):
        image["content"] = base64.b64encode(image["content"]).decode("ascii")
    return answer


def blocking(endpoint_id: str, body: Any, wrong: Any, *, use_jwt: bool) -> dict[str, Any]:
    """Send two inputs at once and then a wrong one, on one connection."""
    with fal_client.realtime(endpoint_id, use_jwt=use_jwt, max_buffering=5) as connection:
        for tag in ("one", "two"):
            connection.send({**body, "request_id": tag})
        answers = [plain(connection.recv()) for _ in range(2)]
        connection.send(wrong)
        try:
            connection.recv()
        except fal_client.client.RealtimeError as error:
            told = {"error": error.error, "reason": error.reason, "payload": error.payload}
        connection.send(body)
        return {"answers": answers, "wrong": told, "after": plain(connection.recv())}


async def in_async(endpoint_id: str, body: Any, *, use_jwt: bool) -> Any:
    """Send one input with the other client."""
    async with fal_client.AsyncClient().realtime(endpoint_id, use_jwt=use_jwt) as connection:
        await connection.send(body)
        return plain(await connection.recv())


def main() -> None:
    """Print one object."""
    endpoint_id, body, wrong, use_jwt = map(json.loads, sys.argv[1:])
    found = blocking(endpoint_id, body, wrong, use_jwt=use_jwt)
    found["async"] = asyncio.run(in_async(endpoint_id, body, use_jwt=use_jwt))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
