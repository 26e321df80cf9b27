"""The part of the server's OpenAPI document about tokens. Websockets have no place in OpenAPI."""

from server.routes.document_parts import (
    OF_A_BODY,
    TEXT,
    Json,
    answer,
    body,
    operation,
    parameter,
)
from server.routes.tokens import DEFAULT_SECONDS, MAX_APP_CHARACTERS, MAX_APPS, MAX_SECONDS

TOKEN = parameter(
    "query", "fal_jwt_token", TEXT, "A token for the application, in the place of a key."
)


def token_paths() -> Json:
    """Describe the two routes that give tokens; they differ in the name of the time alone."""
    return {
        "/rest/tokens": {"post": _issue("app token", "token_expiration")},
        "/rest/tokens/realtime": {"post": _issue("realtime token", "duration")},
    }


def _issue(name: str, seconds: str) -> Json:
    app: Json = {"type": "string", "pattern": "^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$"}
    order: Json = {
        "type": "object",
        "required": ["allowed_apps"],
        "properties": {
            "allowed_apps": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_APPS,
                "items": {**app, "maxLength": MAX_APP_CHARACTERS},
                "description": "Applications by alias, or owner/alias.",
            },
            seconds: {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_SECONDS,
                "default": DEFAULT_SECONDS,
                "description": "Seconds that the token is good for.",
            },
        },
    }
    return operation(
        name,
        "Get a token that opens realtime and the streams of some applications, and nothing else.",
        {200: answer("The token.", TEXT)},
        OF_A_BODY,
        tags=["tokens"],
        requestBody=body(order),
    )
