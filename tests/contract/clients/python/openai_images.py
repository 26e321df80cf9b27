"""Asks for images with OpenAI's own client, as a tool would that knows nothing of fal.

Arguments: the base URL as JSON, the key as JSON, and the path of a picture. Prints as JSON what
came back, and how each mistake ended.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openai

PROMPT = "A lighthouse"


def describe(call: Callable[[], Any]) -> dict[str, Any]:
    """Make a call that must fail, and say how the client tells it."""
    try:
        call()
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "message": str(error.message),
            "param": error.param,
            "code": error.code,
            "request_id": error.response.headers["x-fal-request-id"],
        }
    raise AssertionError("the call was answered")


def make(client: openai.OpenAI, path: Path) -> dict[str, Any]:
    """Make images in every way; the same seed everywhere."""
    images = client.images
    quick = {"seed": 5, "num_inference_steps": 4}
    same: dict[str, Any] = {"prompt": PROMPT, "size": "512x512", "extra_body": quick}
    data = path.read_bytes()
    answers = {
        "url": images.generate(model="flux-2", **same),
        "b64": images.generate(model="gpt-image-1", user="x", moderation="low", **same),
        "two": images.generate(n=2, output_format="jpeg", quality="low", **same),
        "edit": images.edit(image=path.open("rb"), **same),
        "edit_two": images.edit(image=[path.open("rb"), ("b.png", data)], **same),
    }
    return {name: answer.model_dump() for name, answer in answers.items()}


def fail(client: openai.OpenAI, wrong: openai.OpenAI, path: Path, denied: str) -> dict[str, Any]:
    """Make each mistake once."""
    images = client.images
    return {
        "size": describe(lambda: images.generate(prompt=PROMPT, size="256x256")),
        "size_word": describe(lambda: images.generate(prompt=PROMPT, size="huge")),
        "number": describe(lambda: images.generate(prompt=PROMPT, n=5)),
        "model": describe(lambda: images.generate(prompt=PROMPT, model="flux-9")),
        "mask": describe(lambda: images.edit(prompt=PROMPT, image=path, mask=path)),
        "not_an_image": describe(lambda: images.edit(prompt=PROMPT, image=b"nothing to see")),
        "key": describe(lambda: wrong.images.generate(prompt=PROMPT)),
        "policy": describe(lambda: images.generate(prompt=f"A {denied}")),
    }


def main() -> None:
    """Print one JSON object."""
    base_url, key, denied = map(json.loads, sys.argv[1:4])
    path = Path(sys.argv[4])
    client = openai.OpenAI(base_url=base_url, api_key=key)
    wrong = openai.OpenAI(base_url=base_url, api_key="somebody:else")
    told = {
        "version": version("openai"),
        "made": make(client, path),
        "failed": fail(client, wrong, path, denied),
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
