"""Files as they are served: who may read them, how long they may be kept, and what is gone."""

import asyncio
import json
from pathlib import Path

import pytest
from starlette.types import Message

from server.jobs import StoredFile
from server.metrics import Metrics
from server.routes.files import StoredFileResponse
from tests.server.routes.test_uploads import NOW, PNG, Box, box

__all__ = ["box"]

pytestmark = pytest.mark.anyio

FORBID = {"default": "forbid", "rules": [{"user": "bob", "decision": "allow"}]}
ALLOW = {"default": "allow", "rules": [{"user": "bob", "decision": "hide"}]}
OWNER_ONLY = {"default": "hide"}


@pytest.mark.parametrize(
    ("acl", "readers"),
    [
        (None, {"ann", "bob", "cid", None}),
        (FORBID, {"ann", "bob"}),
        (ALLOW, {"ann", "cid", None}),
        (OWNER_ONLY, {"ann"}),
    ],
)
async def test_an_access_list_is_kept_to(
    box: Box, acl: dict[str, object] | None, readers: set[str | None]
) -> None:
    """Who may not read a file cannot tell it from one that is not there."""
    wish = {"x-fal-object-lifecycle": json.dumps({"initial_acl": acl})} if acl else {}
    stored = await box.ask("POST", "/files/upload", "ann", content=PNG, headers=wish)
    path = stored.json()["access_url"]
    unknown = await box.ask("GET", "/files/" + "0" * 32 + ".png")
    for who in ("ann", "bob", "cid", None):
        answer = await box.ask("GET", path, who)
        if who in readers:
            assert answer.content == PNG
            assert ("vary" in answer.headers) == (acl is not None)
        else:
            assert (answer.status_code, answer.content) == (404, unknown.content)
            assert answer.headers.keys() == unknown.headers.keys()


@pytest.mark.parametrize(
    ("expires_at", "seconds"),
    [(None, 365 * 24 * 3600), (NOW + 90.9, 90), (NOW - 5, 0), (NOW + 1e12, 365 * 24 * 3600)],
)
async def test_caches_keep_a_file_no_longer_than_we_do(
    box: Box, expires_at: float | None, seconds: int
) -> None:
    """A year at most, and only the reader's own."""
    name = box.files.write(PNG, "png")
    await box.store.insert_upload(
        StoredFile(
            name=name,
            content_type="image/png",
            size_bytes=len(PNG),
            owner="ann",
            expires_at=expires_at,
        )
    )
    answer = await box.ask("GET", f"/files/{name}")
    assert answer.headers["cache-control"] == f"private, max-age={seconds}, immutable"


async def test_a_file_that_is_gone_or_changed_is_told(box: Box) -> None:
    """410, and counted, so that an operator hears of it; nothing is sent of a changed one."""
    name = (await box.ask("POST", "/files/upload", "ann", content=PNG)).json()["access_url"]
    name = name.rpartition("/")[2]
    path = box.files.find(name)
    assert path is not None
    path.write_bytes(PNG + b"x")
    for expected in (1, 2):
        answer = await box.ask("GET", f"/files/{name}")
        assert answer.status_code == 410
        assert missing(box.metrics) == expected
        path.unlink(missing_ok=True)


def missing(metrics: Metrics) -> float:
    """Return how many missing files were counted."""
    value = metrics.registry.get_sample_value("flux2_files_missing_total")
    assert value is not None
    return value


async def test_a_range_may_not_be_satisfied(box: Box) -> None:
    """However odd it is, it costs no error of ours, and refusals are as safe as the file."""
    url = (await box.ask("POST", "/files/upload", "ann", content=PNG)).json()["access_url"]
    for ranges, statuses in (
        ("bytes=99-", {416}),
        ("lines=1-2", {400}),
        ("bytes=3-1", {400}),
        ("bytes=", {400}),
        ("bytes", {400}),
        ("bytes=--", {400}),
        ("bytes=-0", {400, 416}),
        ("bytes=\u00b2-\u00b3", {400, 416}),
        ("bytes=" + "9" * 30 + "-", {400, 416}),
        ("bytes=" + "9" * 5000 + "-", {400, 416}),
        ("bytes=0-" + "9" * 5000, {206, 400}),
        ("bytes=-" + "9" * 5000, {206, 400}),
    ):
        answer = await box.ask("GET", url, headers={"range": ranges.encode("latin-1")})
        assert answer.status_code in statuses, ranges[:20]
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"


async def send_file(path: Path, unlink_at: str | None) -> list[Message]:
    """Send a file that is unlinked when a message of this type goes out; return the messages."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()  # the client stays and says nothing
        raise AssertionError("never comes")

    async def send(message: Message) -> None:
        if message["type"] == unlink_at:
            path.unlink()
        sent.append(message)

    response = StoredFileResponse(path, stat_result=path.stat())
    if unlink_at is None:
        path.unlink()
    await response({"type": "http", "method": "GET", "headers": []}, receive, send)
    return sent


async def test_a_file_that_expires_while_it_is_sent_is_sent_whole(tmp_path: Path) -> None:
    """Once its length is promised it comes, although its name is gone."""
    path = tmp_path / "file"
    path.write_bytes(PNG)
    start, *body = await send_file(path, "http.response.start")
    assert start["status"] == 200
    assert b"".join(message["body"] for message in body) == PNG
    assert not path.exists()


async def test_a_file_that_expires_before_it_is_sent_is_not_there(tmp_path: Path) -> None:
    """The last moment looks like any other after its end."""
    path = tmp_path / "file"
    path.write_bytes(PNG)
    start, body = await send_file(path, None)
    assert start["status"] == 404
    assert json.loads(body["body"]) == {"detail": "File not found"}
