"""What can be asked for here, and how soon: `GET /v1/models`, as https://api.fal.ai has it.

Each endpoint of fal's is in `models` with the `metadata` that fal gives it; what only a shop has
(pictures, dates) is left out. Beside it `serving` is our own: the model that makes its images, and
whether that is `loaded`, `loading`, `loadable` (it is loaded when it is its turn), `failed`, or
`missing`, and then why.

OpenAI's interface has a route of the same path and another form, `data` with an `id` each. Both are
in one answer: programs that fill a menu from there find what is served, by the same ids.
"""

import base64
import binascii
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from server.catalogue import CATALOGUE
from server.dispatcher import Dispatcher
from server.errors import RequestError
from server.family.endpoint import Endpoint
from server.offer import Offer
from server.routes.answers import AsciiJSONResponse
from server.routes.doors import Door, door_of
from server.routes.openapi import build_document

MAX_IDS = 50
OPENAPI = "openapi-3.0"
BAD_CURSOR = "cursor is not one of this server's"


class Listing(BaseModel):
    """fal's parameters; endpoint ids and expansions may be repeated or separated by commas."""

    endpoint_id: list[str] = []
    q: str | None = None
    category: str | None = None
    status: Literal["active", "deprecated"] | None = None
    expand: list[str] = []
    limit: int = Field(50, ge=1, le=1000)
    cursor: str | None = None


class Serving(NamedTuple):
    """Whether an endpoint is served; `reason` says why not."""

    state: str
    reason: str | None


class ModelRoutes:
    """The route over the given parts; `router` holds it."""

    def __init__(self, offer: Offer, dispatcher: Dispatcher) -> None:
        self._offer = offer
        self._dispatcher = dispatcher
        self.router = APIRouter(prefix="/v1/models", include_in_schema=False)
        self.router.add_api_route("", self.list_endpoints, methods=["GET"])

    async def list_endpoints(
        self, request: Request, asked: Annotated[Listing, Query()]
    ) -> Response:
        """List all endpoints, those with some ids, or those that are searched for."""
        found = _find(asked)
        start = _read_cursor(asked.cursor)
        page, following = found[start : start + asked.limit], start + asked.limit
        has_more = following < len(found)
        served = {endpoint.id: await self._serving(endpoint) for endpoint in found}
        door, with_documents = door_of(request), OPENAPI in _split(asked.expand)
        body = {
            "models": [
                _describe(endpoint, served[endpoint.id], door, with_document=with_documents)
                for endpoint in page
            ],
            "next_cursor": _write_cursor(following) if has_more else None,
            "has_more": has_more,
            "object": "list",
            "data": [
                {"id": endpoint.id, "object": "model", "created": 0, "owned_by": "flux2-serve"}
                for endpoint in found
                if served[endpoint.id].state != "missing"
            ],
        }
        return AsciiJSONResponse(body)

    async def _serving(self, endpoint: Endpoint) -> Serving:
        problem = self._offer.problem_of(endpoint)
        if problem:
            return Serving("missing", problem)
        state = self._dispatcher.model_states[endpoint.model]
        if state.word != "loadable":
            return Serving(state.word, state.reason)
        problem = await self._dispatcher.folders.problem_of(endpoint.model)
        return Serving("missing", problem) if problem else Serving("loadable", None)


def _find(asked: Listing) -> list[Endpoint]:
    """Return what is asked for, in the catalogue's order. Raises `RequestError` 404 or 400."""
    ids = _split(asked.endpoint_id)
    if len(ids) > MAX_IDS:
        raise RequestError(400, f"endpoint_id may name {MAX_IDS} endpoints at most")
    for endpoint_id in ids:
        if endpoint_id not in CATALOGUE:
            raise RequestError(404, f'Endpoint "{endpoint_id}" not found')
    if asked.status == "deprecated":
        return []
    return [
        endpoint
        for endpoint in CATALOGUE.values()
        if (not ids or endpoint.id in ids)
        and asked.category in (None, endpoint.category)
        and _matches(endpoint, asked.q)
    ]


def _matches(endpoint: Endpoint, words: str | None) -> bool:
    """Say whether every word is somewhere in what tells what the endpoint is."""
    told = " ".join((endpoint.id, _name(endpoint), endpoint.description, endpoint.category)).lower()
    return all(word in told for word in (words or "").lower().split())


def _describe(
    endpoint: Endpoint, serving: Serving, door: Door, *, with_document: bool
) -> dict[str, Any]:
    url = f"{door.files_origin}/{endpoint.id}"
    entry: dict[str, Any] = {
        "endpoint_id": endpoint.id,
        "metadata": {
            "display_name": _name(endpoint),
            "category": endpoint.category,
            "description": endpoint.description,
            "status": "active",
            "tags": [],
            "kind": "inference",
            "model_url": url,
            "stream_url": f"{url}/stream",
            "is_favorited": False,
            "highlighted": False,
            "pinned": False,
        },
        "serving": {"model": endpoint.model, "state": serving.state, "reason": serving.reason},
    }
    if with_document:
        entry["openapi"] = build_document(endpoint, door.queue_url)
    return entry


def _name(endpoint: Endpoint) -> str:
    """Return a name for people: `FLUX.2 klein 4b edit` for `fal-ai/flux-2/klein/4b/edit`."""
    _, _, path = endpoint.id.partition("/")
    return path.replace("flux-2", "FLUX.2", 1).replace("/", " ").replace("-", " ")


def _split(given: list[str]) -> list[str]:
    return [part.strip() for text in given for part in text.split(",") if part.strip()]


def _write_cursor(start: int) -> str:
    return base64.b64encode(str(start).encode("ascii")).decode("ascii")


def _read_cursor(cursor: str | None) -> int:
    """Return the place of the first endpoint of a page. Raises `RequestError` 400."""
    if cursor is None:
        return 0
    try:
        start = int(base64.b64decode(cursor, validate=True)[:9])
    except (binascii.Error, ValueError):
        raise RequestError(400, BAD_CURSOR) from None
    if start < 0:
        raise RequestError(400, BAD_CURSOR)
    return start
