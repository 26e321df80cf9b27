"""Streams a request that fails after its first preview; prints what the client raises, as JSON.

Arguments, each as JSON: the endpoint, the input, and the file that lets the request fail.
"""

import json
import sys
from pathlib import Path

import fal_client


def main() -> None:
    """Print the text that is no JSON, and how many events came before."""
    endpoint_id, body, gate = map(json.loads, sys.argv[1:])
    count = 0
    try:
        for _ in fal_client.stream(endpoint_id, body):
            count += 1
            Path(gate).touch()
    except json.JSONDecodeError as error:
        json.dump({"text": error.doc, "events": count}, sys.stdout)
        return
    raise SystemExit("the stream did not fail")


if __name__ == "__main__":
    main()
