"""Subscribes to one endpoint with fal's client and prints the result as JSON.

Arguments, each as JSON: the endpoint, and the input.
"""

import json
import sys

import fal_client


def main() -> None:
    """Print one JSON object."""
    endpoint_id, body = map(json.loads, sys.argv[1:])
    json.dump(fal_client.subscribe(endpoint_id, body), sys.stdout)


if __name__ == "__main__":
    main()
