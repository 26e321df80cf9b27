"""The public keys that webhooks are signed with, where fal has them (https://rest.fal.ai)."""

from fastapi import APIRouter
from starlette.responses import Response

from server.routes.answers import AsciiJSONResponse
from server.signing import Signer

MAX_AGE_SECONDS = 3600
"""How long the set may be kept on its way, far below the time a new key waits to be used."""


def make_router(signer: Signer) -> APIRouter:
    """Make the route over the keys."""
    router = APIRouter(include_in_schema=False)

    async def jwks() -> Response:
        """Answer with the JSON Web Key Set; anybody may ask."""
        headers = {"cache-control": f"public, max-age={MAX_AGE_SECONDS}"}
        return AsciiJSONResponse(signer.jwks(), headers=headers)

    router.add_api_route("/.well-known/jwks.json", jwks, methods=["GET"])
    return router
