"""Tokens for who must not have the key, such as a web page: they open one application for a while.

fal's clients ask for them by alias, samples of its documents by endpoint id; either way a token is
for whole applications. It opens realtime and streams there, and nothing else; see `auth`.
"""

import re
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import AfterValidator, AliasChoices, BaseModel, Field, ValidationError
from starlette.responses import Response

from server.errors import field_errors
from server.routes.answers import AsciiJSONResponse, read_json
from server.routes.auth import caller_of
from server.routes.doors import REST_PREFIX
from server.tickets import Tickets

DEFAULT_SECONDS = 120
MAX_SECONDS = 24 * 3600
MAX_APPS = 16
MAX_APP_CHARACTERS = 100
"""Tokens travel in URLs, so the two bound their length."""

JSON_LIMIT_BYTES = 64 * 1024

_APP = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)


def _application(text: str) -> str:
    """Return the alias, or `owner/alias`, of what was asked for."""
    path = text.strip("/")
    if not _APP.fullmatch(path):
        raise ValueError("not the alias of an application, nor owner/alias")
    return "/".join(path.split("/")[:2])


class TokenOrder(BaseModel):
    """What fal's clients ask for, and with `duration` what its documents' sample does."""

    allowed_apps: list[
        Annotated[str, Field(max_length=MAX_APP_CHARACTERS), AfterValidator(_application)]
    ] = Field(min_length=1, max_length=MAX_APPS)
    seconds: int = Field(
        DEFAULT_SECONDS,
        ge=1,
        le=MAX_SECONDS,
        validation_alias=AliasChoices("token_expiration", "duration"),
    )


def make_router(tickets: Tickets) -> APIRouter:
    """Make the two routes, which do the same."""
    router = APIRouter(include_in_schema=False)

    async def issue(request: Request) -> Response:
        try:
            order = TokenOrder.model_validate(await read_json(request, JSON_LIMIT_BYTES))
        except ValidationError as error:
            raise field_errors(error) from error
        token = tickets.issue_app_token(caller_of(request), order.allowed_apps, order.seconds)
        return AsciiJSONResponse(token, headers={"cache-control": "no-store"})

    for path in ("tokens", "tokens/realtime"):
        router.add_api_route(f"{REST_PREFIX}/{path}", issue, methods=["POST"])
    return router
