"""Uploads a LoRA and a pickle by fal's Python client, and asks for images with and without them.

Arguments, each as JSON: the server's https origin, the paths of both files. Prints as JSON digests
of the images made before, with and after the LoRA, and the error that the pickle gave.
"""

import hashlib
import json
import sys

import fal_client
import fal_client.client
import httpx

ENDPOINT = "fal-ai/flux-2/lora"
INPUT = {"prompt": "x", "image_size": "square", "num_inference_steps": 4, "seed": 3}


def draw(*loras: dict[str, object]) -> str:
    """Return the digest of an image that is made with these."""
    answer = fal_client.subscribe(ENDPOINT, {**INPUT, "loras": loras})
    data = httpx.get(answer["images"][0]["url"]).raise_for_status().content
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """Print one JSON object."""
    origin, *paths = map(json.loads, sys.argv[1:])
    fal_client.client.REST_URL = f"{origin}/rest"
    fal_client.client.CDN_URL = origin
    lora, bad = map(fal_client.upload_file, paths)
    told: dict[str, object] = {"before": draw()}
    told["with"] = draw({"path": lora})
    told["weaker"] = draw({"path": lora, "scale": 0.25})
    try:
        draw({"path": lora}, {"path": bad})
    except fal_client.FalClientError as error:
        told["error"] = str(error)
    told["after"] = draw()
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
