"""Asks for images with LiteLLM, by its provider for fal and by the one for OpenAI.

Arguments: the server's origin and the key as JSON, and the path of a picture. Prints JSON.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import litellm

PROMPT = "A lighthouse"
QUICK: dict[str, Any] = {"seed": 5, "num_inference_steps": 4}


def main() -> None:
    """Print one JSON object."""
    origin, key = map(json.loads, sys.argv[1:3])
    path = Path(sys.argv[3])
    os.environ["FAL_AI_API_KEY"] = key
    litellm.suppress_debug_info = True  # which it prints where our answer is read
    told: dict[str, Any] = {"version": version("litellm")}
    # Of models that it does not know by name it takes the base for the whole address.
    answer = litellm.image_generation(
        prompt=PROMPT,
        model="fal_ai/fal-ai/flux-2",
        api_base=f"{origin}/fal-ai/flux-2",
        image_size="square",
        **QUICK,
    )
    told["generation"] = answer.model_dump()
    os.environ["FAL_AI_API_BASE"] = f"{origin}/fal-ai/flux-2"
    answer = litellm.image_generation(
        prompt=PROMPT, model="fal_ai/fal-ai/flux-2", image_size="square", **QUICK
    )
    told["by_variable"] = answer.model_dump()
    os.environ["FAL_AI_API_BASE"] = origin
    answer = litellm.image_edit(
        image=path.open("rb"),
        prompt=PROMPT,
        model="fal_ai/fal-ai/flux-2/edit",
        image_size="square",
        **QUICK,
    )
    told["edit"] = answer.model_dump()
    answer = litellm.image_generation(
        prompt=PROMPT,
        model="openai/fal-ai/flux-2",
        api_base=f"{origin}/v1",
        api_key=key,
        size="512x512",
        extra_body=QUICK,
    )
    told["openai"] = answer.model_dump()
    try:
        litellm.image_generation(
            prompt=PROMPT,
            model="fal_ai/fal-ai/flux-2",
            api_base=f"{origin}/fal-ai/flux-2",
            api_key="somebody:else",
        )
    except litellm.exceptions.AuthenticationError as error:
        told["wrong_key"] = error.status_code
    json.dump(told, sys.stdout, default=str)


if __name__ == "__main__":
    main()
