"""The key set is where fal's receivers look for it, and open to everybody."""

from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from server.clock import SteadyClock
from server.keyfile import KeyFile
from server.keys import Keyring
from server.routes import jwks
from server.routes.auth import AuthMiddleware, Gate
from server.routes.doors import DoorMiddleware
from server.signing import Signer
from server.tickets import Tickets

pytestmark = pytest.mark.anyio

PATH = "/.well-known/jwks.json"


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        (f"http://box:8000{PATH}", {}),
        (f"https://rest.fal.ai{PATH}", {}),
        (f"https://rest.alpha.fal.ai{PATH}", {}),
        ("http://box:8000/api/fal/proxy", {"x-fal-target-url": f"https://rest.fal.ai{PATH}"}),
    ],
)
async def test_every_door_leads_to_the_keys(
    tmp_path: Path, url: str, headers: dict[str, str]
) -> None:
    """By the box's own name, by fal's, through the proxy; without a key though one is set."""
    signer = Signer(tmp_path)
    signer.load()
    app = FastAPI()
    app.include_router(jwks.make_router(signer))
    keys = Keyring(KeyFile(tmp_path), "id:secret")
    tickets = Tickets(tmp_path, SteadyClock(), keys.get)
    app.add_middleware(AuthMiddleware, gate=Gate(keys, SteadyClock()), tickets=tickets)
    app.add_middleware(DoorMiddleware)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as client:
        answer = await client.get(url, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "public, max-age=3600"
    assert answer.json() == signer.jwks()
