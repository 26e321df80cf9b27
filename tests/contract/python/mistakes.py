"""Makes the usual mistakes with fal's Python client; prints how it reports each, as JSON.

Arguments, each as JSON: the endpoint, a wrong input, and the request id of one that is finished.
"""

import asyncio
import json
import sys
from typing import Any

import fal_client

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


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
        }
    raise SystemExit("the call did not fail")


def ask_async(way: str, endpoint_id: str, body: Any) -> None:
    """Call a method of a fresh asynchronous client: one is bound to its event loop."""
    asyncio.run(getattr(fal_client.AsyncClient(), way)(endpoint_id, body))


def main() -> None:
    """Print one object, with the mistake as the key."""
    endpoint_id, wrong, finished_id = map(json.loads, sys.argv[1:])
    found = {
        "run": failure(fal_client.run, endpoint_id, wrong),
        "run_async": failure(ask_async, "run", endpoint_id, wrong),
        "subscribe": failure(fal_client.subscribe, endpoint_id, wrong),
        "subscribe_async": failure(ask_async, "subscribe", endpoint_id, wrong),
        "cancel_finished": failure(fal_client.cancel, endpoint_id, finished_id),
        "unknown_status": failure(fal_client.status, endpoint_id, UNKNOWN_ID),
        "unknown_result": failure(fal_client.result, endpoint_id, UNKNOWN_ID),
        "unknown_cancel": failure(fal_client.cancel, endpoint_id, UNKNOWN_ID),
        "unknown_endpoint": failure(fal_client.submit, "fal-ai/no-such-model", {}),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
