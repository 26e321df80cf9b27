"""The upload routes: whose files they are, where they lead, and what their tickets open."""

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import FalError
from server.files import FileStore
from server.keys import Caller
from server.metrics import Metrics
from server.routes import files as file_routes
from server.routes.answers import handle_fal_error
from server.routes.doors import DoorMiddleware
from server.routes.uploads import UploadRoutes
from server.settings import Settings
from server.store import Store
from server.tickets import TOKEN_SECONDS, Tickets
from server.uploads import Uploads

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
NOW = 1_900_000_000.0


class KnownCaller:
    """Takes the caller's word for who it is, in place of the keys."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note the caller as the middleware for keys does."""
        words = dict(scope["headers"]).get(b"authorization", b"").decode().split()
        caller = Caller(owner=words[1]) if words[:1] == ["Key"] else None
        state = {**scope.get("state", {}), "caller": caller, "identify": lambda: caller}
        scope = {**scope, "state": state}
        await self._app(scope, receive, send)


class Box:
    """The routes over real parts, at a time and with keys that the test sets."""

    def __init__(self, settings: Settings) -> None:
        self.now = NOW
        self.owners = {"ann", "bob"}
        self.store = Store(settings.data_dir)
        self.files = FileStore(settings.data_dir / "files")
        self.tickets = Tickets(settings.data_dir / "keys", self._clock, self._find)
        self.tickets.load()
        uploads = Uploads(settings, self.store, self.files, self._clock)
        self.metrics = Metrics(self._clock, self.store.backlog)
        app = FastAPI(exception_handlers={FalError: handle_fal_error})
        app.include_router(UploadRoutes(uploads, self.tickets).router)
        app.include_router(
            file_routes.make_router(self.store, self.files, self.metrics, self._clock)
        )
        app.add_middleware(KnownCaller)
        app.add_middleware(DoorMiddleware)
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://box:8000"
        )

    async def ask(
        self, method: str, path: str, who: str | None = None, **more: Any
    ) -> httpx2.Response:
        """Ask as the owner of a key, or as nobody."""
        headers = {**({"authorization": f"Key {who}"} if who else {}), **more.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **more)

    async def announce(self, who: str, kind: str = "", **more: Any) -> dict[str, str]:
        """Announce a file and return what was said."""
        path = f"/rest/storage/upload/initiate{kind}"
        answer = await self.ask("POST", path, who, json={"content_type": "image/png"}, **more)
        assert answer.status_code == 200, answer.text
        said: dict[str, str] = answer.json()
        return said

    def _clock(self) -> float:
        return self.now

    def _find(self, owner: str) -> Caller | None:
        return Caller(owner=owner) if owner in self.owners else None


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Box]:
    """Return such routes."""
    box = Box(settings.model_copy(update={"disk_reserve_bytes": 0}))
    await box.store.open()
    async with box.http:
        yield box
    await box.store.close()


@pytest.mark.parametrize(
    ("base", "files"),
    [
        ("http://rest.fal.ai", "http://v3b.fal.media"),
        ("https://rest.alpha.fal.ai", "https://v3b.fal.media"),
        ("https://box:8443/rest", "https://box:8443"),
    ],
)
async def test_urls_lead_back_to_where_the_caller_came_from(
    box: Box, base: str, files: str
) -> None:
    """Under fal's names to its host for files, otherwise to the origin that was asked."""
    token = await box.ask("POST", f"{base}/storage/auth/token", "ann", json={})
    assert token.json()["base_url"] == files
    said = await box.ask("POST", f"{base}/storage/upload/initiate?storage_type=gcs", "ann", json={})
    assert said.json()["file_url"].startswith(f"{files}/files/")
    upload_url = said.json()["upload_url"]
    assert upload_url.startswith(f"{files}/uploads/")
    stored = await box.ask("PUT", upload_url, content=PNG)
    assert stored.json() == {"access_url": said.json()["file_url"]}
    assert (await box.ask("GET", stored.json()["access_url"])).content == PNG


async def test_a_file_belongs_to_whose_ticket_it_was(box: Box) -> None:
    """By token, by key and by URL; who sends the bytes makes no difference."""
    token = (await box.ask("POST", "/rest/storage/auth/token", "ann", json={})).json()["token"]
    bearer = {"authorization": f"Bearer {token}"}
    by_token = await box.ask("POST", "/files/upload", headers=bearer, content=PNG)
    by_key = await box.ask("POST", "/files/upload", "ann", content=PNG)
    said = await box.announce("ann")
    by_url = await box.ask("PUT", said["upload_url"], "bob", content=PNG)
    for answer in (by_token, by_key, by_url):
        record = await box.store.get_file(answer.json()["access_url"].rpartition("/")[2])
        assert record is not None
        assert record.owner == "ann"


async def test_the_cdn_s_parts_are_their_owner_s(box: Box) -> None:
    """With another key's parts nothing can be done, nor with another name's."""
    begun = (await box.ask("POST", "/files/upload/multipart", "ann")).json()
    other = (await box.ask("POST", "/files/upload/multipart", "ann")).json()
    path = f"{begun['access_url']}/multipart/{begun['uploadId']}"
    for who, target in (
        ("bob", f"{path}/1"),
        ("ann", f"{other['access_url']}/multipart/{begun['uploadId']}/1"),
        ("ann", f"{begun['access_url']}/multipart/{begun['uploadId'][:-2]}/1"),
        ("ann", f"{begun['access_url']}/multipart/x/1"),
    ):
        answer = await box.ask("PUT", target, who, content=b"evil")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Upload not found"})
    assert (await box.ask("PUT", f"{path}/1", content=b"evil")).status_code == 401
    part = await box.ask("PUT", f"{path}/1", "ann", content=PNG)
    listed = {"parts": [{"partNumber": 1, "etag": part.headers["etag"]}]}
    assert (await box.ask("POST", f"{path}/complete", "bob", json=listed)).status_code == 404
    for _ in range(2):
        done = await box.ask("POST", f"{path}/complete", "ann", json=listed)
        assert (done.status_code, done.json()["access_url"]) == (200, begun["access_url"])


async def test_a_revoked_key_s_tickets_die_with_it(box: Box) -> None:
    """Tokens, URLs and uploads under way."""
    token = (await box.ask("POST", "/rest/storage/auth/token", "ann", json={})).json()["token"]
    whole, parts = await box.announce("ann"), await box.announce("ann", "-multipart")
    path, _, query = parts["upload_url"].partition("?")
    assert (await box.ask("PUT", f"{path}/1?{query}", content=PNG)).status_code == 200
    box.owners.remove("ann")
    bearer = {"authorization": f"Bearer {token}"}
    assert (await box.ask("POST", "/files/upload", headers=bearer, content=b"")).status_code == 401
    for target in (whole["upload_url"], f"{path}/2?{query}"):
        assert (await box.ask("PUT", target, content=PNG)).status_code == 403
    done = await box.ask("POST", f"{path}/complete?{query}", json={"parts": []})
    assert done.status_code == 403


async def test_tickets_end(box: Box) -> None:
    """After an hour, or with the life that was wished for the file, whichever is first."""
    usual = await box.announce("ann")
    short = await box.announce(
        "ann", headers={"x-fal-object-lifecycle": '{"expiration_duration_seconds": 60}'}
    )
    token = (await box.ask("POST", "/rest/storage/auth/token", "ann", json={})).json()["token"]
    box.now = NOW + 60
    assert (await box.ask("PUT", short["upload_url"], content=PNG)).status_code == 403
    assert (await box.ask("PUT", usual["upload_url"], content=PNG)).status_code == 200
    box.now = NOW + TOKEN_SECONDS
    bearer = {"authorization": f"Bearer {token}"}
    assert (await box.ask("POST", "/files/upload", headers=bearer)).status_code == 401


async def test_an_access_list_has_to_fit_into_a_url(box: Box) -> None:
    """A hundred long rules do not; on the CDN's own route, which needs no URL, they may."""
    users = [hashlib.shake_256(b"%d" % index).hexdigest(128) for index in range(100)]
    rules = [{"user": user, "decision": "allow"} for user in users]
    wish = json.dumps({"initial_acl": {"default": "forbid", "rules": rules}})
    headers = {"x-fal-object-lifecycle": wish}
    for path in ("/rest/storage/upload/initiate", "/files/upload/multipart"):
        answer = await box.ask("POST", path, "ann", json={}, headers=headers)
        assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
    whole = await box.ask("POST", "/files/upload", "ann", content=PNG, headers=headers)
    assert whole.status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 200),
        (b'{"content_type": "image/png", "file_name": "\\ud800", "more": 1}', 200),
        (b'{"content_type": "\\u0000/"}', 200),
        (b'{"content_type": "\\ud800"}', 422),
        (b'{"content_type": 5}', 422),
        (b'{"content_type": null}', 422),
        (b"[]", 422),
        (b"", 422),
        (b"NaN", 422),
    ],
)
async def test_what_is_said_of_a_file(box: Box, body: bytes, status: int) -> None:
    """Everything is optional, names are not even looked at, and nonsense is fal's 422."""
    answer = await box.ask("POST", "/rest/storage/upload/initiate", "ann", content=body)
    assert answer.status_code == status
    if status == 200:
        assert set(answer.json()) == {"upload_url", "file_url"}
    else:
        assert answer.json()["detail"][0]["loc"][0] == "body"
