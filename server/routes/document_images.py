"""The part of the server's OpenAPI document about the routes in OpenAI's form."""

from server.family.fields import MAX_IMAGES
from server.routes.document_parts import (
    ALWAYS,
    ERRORS,
    OF_A_JOB,
    TEXT,
    Json,
    answer,
    operation,
    record,
    ref,
)
from server.routes.openai_errors import PREFIX
from server.routes.openai_form import QUALITIES

OPTIONAL_TEXT: Json = {"type": ["string", "null"]}
FIELDS: Json = {
    "prompt": TEXT,
    "model": {**TEXT, "description": "An endpoint id, with or without `fal-ai/`."},
    "n": {"type": "integer", "minimum": 1, "maximum": MAX_IMAGES},
    "size": {**TEXT, "examples": ["auto", "1024x768"], "pattern": "^(auto|[0-9]{3,4}x[0-9]{3,4})$"},
    "quality": {"enum": list(QUALITIES)},
    "response_format": {"enum": ["url", "b64_json"]},
    "output_format": {"enum": ["png", "jpeg", "webp"]},
}
PICTURE: Json = {"type": "string", "format": "binary"}


def image_paths() -> Json:
    """Describe the two routes. The fields of the endpoint itself may be given beside these."""
    plain: Json = {"type": "object", "properties": FIELDS, "required": ["prompt"]}
    edit = {
        "type": "object",
        "properties": {
            **FIELDS,
            "image": {"anyOf": [PICTURE, {"type": "array", "items": PICTURE}]},
        },
        "required": ["prompt", "image"],
    }
    return {
        f"{PREFIX}generations": {
            "post": _images("draw", "Draw images of a prompt.", "application/json", plain)
        },
        f"{PREFIX}edits": {"post": _images("edit", "Edit images.", "multipart/form-data", edit)},
    }


def _images(name: str, summary: str, media: str, schema: Json) -> Json:
    image: Json = {"type": "object", "properties": dict.fromkeys(("url", "b64_json"), TEXT)}
    image["properties"]["revised_prompt"] = TEXT
    made = record(created={"type": "integer"}, data={"type": "array", "items": image})
    return operation(
        f"{name} in OpenAI's form",
        summary,
        {200: answer("The images.", made), **{code: _error(code) for code in (*ALWAYS, *OF_A_JOB)}},
        tags=["openai"],
        requestBody={"required": True, "content": {media: {"schema": schema}}},
    )


def _error(code: int) -> Json:
    """Describe an error, which is in fal's form where it is answered before the path is read."""
    told = record(message=TEXT, type=TEXT, param=OPTIONAL_TEXT, code=OPTIONAL_TEXT)
    found = answer(ERRORS[code], {"anyOf": [record(error=told), ref("PlatformError")]})
    if code == 400:
        found["content"]["text/plain"] = {}
    return found
