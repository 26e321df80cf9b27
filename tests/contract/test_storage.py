"""Storage from outside: tokens, upload URLs, parts, limits, quotas, lifetimes."""

import json
import socket
from typing import Any

import httpx2
import pytest

from tests.contract.conftest import poll_until
from tests.contract.storage_box import LIMIT_BYTES, PNG, QUOTA_BYTES, SHORT, Box, box

__all__ = ["box"]


def test_a_token_is_as_the_python_client_wants_it(box: Box) -> None:
    """The time of its end has an offset, and it opens the CDN's routes and nothing else."""
    answer = box.keyed.post("/rest/storage/auth/token?storage_type=fal-cdn-v3", json={})
    said = answer.json()
    assert set(said) == {"token", "token_type", "base_url", "expires_at"}
    assert (said["token_type"], said["base_url"]) == ("Bearer", box.server.http)
    assert said["expires_at"].endswith("+00:00")
    bearer = {"authorization": f"Bearer {said['token']}"}
    begun = box.keyless.post("/files/upload", content=PNG, headers=bearer)
    assert begun.status_code == 200
    refused = box.keyless.post("/queue/fal-ai/flux-2", json={"prompt": "A"}, headers=bearer)
    assert refused.status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/rest/storage/auth/token"),
        ("POST", "/rest/storage/upload/initiate"),
        ("POST", "/rest/storage/upload/initiate-multipart"),
        ("POST", "/files/upload"),
        ("POST", "/files/upload/multipart"),
        ("PUT", f"/files/{'a' * 32}.png/multipart/x/1"),
        ("POST", f"/files/{'a' * 32}.png/multipart/x/complete"),
    ],
)
def test_without_a_key_nothing_can_be_announced(box: Box, method: str, path: str) -> None:
    """Neither without a header nor with somebody else's token."""
    before = box.files()
    for headers in ({}, {"authorization": "Bearer x.y"}):
        answer = box.keyless.request(method, path, content=b"{}", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["detail"]
    assert box.files() <= before


def test_an_upload_url_is_good_once_and_for_its_name_only(box: Box) -> None:
    """It needs no key, and nothing else opens what it opens."""
    said, other = box.announce(), box.announce()
    ticket = said["upload"].partition("?ticket=")[2]
    assert ticket
    for path in (
        f"{other['upload'].partition('?')[0]}?ticket={ticket}",
        said["upload"].partition("?")[0],
        said["upload"][:-2],
        f"{said['upload'].partition('?')[0]}?ticket=",
    ):
        answer = box.keyed.put(path, content=PNG)
        assert answer.status_code == 403
        assert answer.json()["detail"] == "The upload URL is not good, or not any more"
    assert box.keyless.get(said["file"]).status_code == 404
    assert box.keyless.put(said["upload"], content=PNG).status_code == 200
    assert box.keyless.get(said["file"]).content == PNG
    again = box.keyless.put(said["upload"], content=b"other")
    assert (again.status_code, again.json()["detail"]) == (403, "This upload was used already")
    assert box.keyless.get(said["file"]).content == PNG


def test_parts_by_url(box: Box) -> None:
    """Each part answers as the JavaScript client reads it; a wrong list is fal's 422 or a 400."""
    said = box.announce("-multipart")
    path, _, query = said["upload"].partition("?")
    parts = []
    for number in (2, 1):
        answer = box.keyless.put(f"{path}/{number}?{query}", content=PNG * number)
        part = answer.json()
        assert part["partNumber"] == number
        assert answer.headers["etag"] == f'"{part["etag"]}"'
        parts.append(part)
    for wrong, status in (
        ({"parts": []}, 400),
        ({"parts": [{"partNumber": 1, "etag": "x"}]}, 400),
        ({"parts": [{"partNumber": 10**30, "etag": "x"}]}, 422),
        ({"parts": [{"partNumber": "one"}]}, 422),
        ([], 422),
        ({}, 422),
    ):
        answer = box.keyless.post(f"{path}/complete?{query}", json=wrong)
        assert answer.status_code == status, answer.text
    for wrong_number in ("0", "1001", "-1", "x", "9" * 40):
        answer = box.keyless.put(f"{path}/{wrong_number}?{query}", content=b"x")
        assert answer.status_code in (400, 404)
    done = box.keyless.post(f"{path}/complete?{query}", json={"parts": parts})
    assert done.status_code == 200
    assert box.keyless.get(said["file"]).content == PNG * 3


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("way", ["cdn", "url", "part"])
def test_the_limit_itself_fits_and_a_byte_more_does_not(box: Box, way: str, chunked: bool) -> None:
    """413, told to a sender who still sends, and nothing is left of it."""
    before = box.files()

    def send(size_bytes: int) -> httpx2.Response:
        data = bytes(size_bytes)
        content: Any = iter([data[:-1], data[-1:]]) if chunked else data
        if way == "cdn":
            return box.keyed.post("/files/upload", content=content, headers=SHORT)
        if way == "url":
            return box.keyless.put(box.announce("", **SHORT)["upload"], content=content)
        path, _, query = box.announce("-multipart", **SHORT)["upload"].partition("?")
        return box.keyless.put(f"{path}/1?{query}", content=content)

    refused = send(LIMIT_BYTES + 1)
    assert refused.status_code == 413
    assert refused.json() == {
        "detail": f"The file exceeds {LIMIT_BYTES} bytes",
        "error_type": "file_too_large",
    }
    assert box.files() == before
    assert send(LIMIT_BYTES).status_code == 200


def test_a_broken_off_upload_leaves_nothing(box: Box) -> None:
    """Half of a file, and the rest never comes: no file, no charge, and the URL stays good."""
    before = box.files()
    said = box.announce("", **{"x-fal-object-lifecycle": '{"expiration_duration_seconds": 60}'})
    host, port = box.server.http.removeprefix("http://").split(":")
    for _ in range(QUOTA_BYTES // LIMIT_BYTES + 1):
        with socket.create_connection((host, int(port))) as connection:
            head = f"PUT {said['upload']} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {LIMIT_BYTES}"
            connection.sendall(head.encode() + b"\r\n\r\n" + bytes(LIMIT_BYTES // 2))
            poll_until(lambda: box.files() - before, "the half is on the disk")
        poll_until(lambda: box.files() == before, "the half is gone")
    poll_until(
        lambda: box.keyless.put(said["upload"], content=PNG).status_code == 200,
        "the URL is good again",
    )


def test_the_quota_is_told_in_fal_s_words(box: Box) -> None:
    """As soon as it is known, and what expires makes room again."""
    refused = None
    for _ in range(QUOTA_BYTES // LIMIT_BYTES + 1):
        answer = box.keyed.post("/files/upload", content=bytes(LIMIT_BYTES), headers=SHORT)
        if answer.status_code != 200:
            refused = answer
    assert refused is not None
    assert refused.status_code == 403
    assert refused.json() == {
        "detail": f"The server's storage for uploads is full; it takes {QUOTA_BYTES} bytes",
        "error_type": "storage_quota_exceeded",
    }
    assert refused.headers["x-fal-error-type"] == "storage_quota_exceeded"

    def fits_again() -> bool:
        answer = box.keyed.post("/files/upload", content=bytes(LIMIT_BYTES), headers=SHORT)
        return bool(answer.status_code == 200)

    poll_until(fits_again, "there is room again")


def test_lifetimes_and_access(box: Box) -> None:
    """A file ends with its time, and one that is forbidden looks as if it were not there."""
    short = box.upload(PNG, **SHORT)
    hidden = box.upload(
        PNG,
        **{
            "x-fal-object-lifecycle-preference": json.dumps(
                {"expiration_duration_seconds": 60, "initial_acl": {"default": "hide"}}
            )
        },
    )
    by_url = box.announce("", **{"x-fal-object-lifecycle": '{"initial_acl":{"default":"forbid"}}'})
    assert box.keyless.put(by_url["upload"], content=PNG).status_code == 200
    assert "max-age=0" in box.keyless.get(short).headers["cache-control"]
    unknown = box.keyless.get(f"/files/{'0' * 32}.png")
    for path in (hidden, by_url["file"]):
        refused = box.keyless.get(path)
        volatile = {"date", "x-fal-request-id"}
        assert (refused.status_code, refused.content) == (404, unknown.content)
        assert {name: value for name, value in refused.headers.items() if name not in volatile} == {
            name: value for name, value in unknown.headers.items() if name not in volatile
        }
        allowed = box.keyed.get(path)
        assert allowed.content == PNG
        assert allowed.headers["cache-control"] == "private, no-cache"
        etag = {"if-none-match": allowed.headers["etag"]}
        assert box.keyless.get(path, headers=etag).status_code == 404
    poll_until(lambda: box.keyless.get(short).status_code == 404, "the short one is gone")
    for wrong in ("[]", "{", '{"expiration_duration_seconds": "x"}', '{"initial_acl": 1}'):
        for answer in (
            box.keyed.post("/files/upload", content=PNG, headers={"x-fal-object-lifecycle": wrong}),
            box.keyed.post(
                "/rest/storage/upload/initiate",
                json={},
                headers={"x-fal-object-lifecycle-preference": wrong},
            ),
        ):
            assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")


def test_a_web_page_may_upload(box: Box) -> None:
    """A browser asks before it sends, and lets the page read the etag of a part."""
    said = box.announce("-multipart")
    path, _, query = said["upload"].partition("?")
    origin = {"origin": "https://app.example"}
    asked = box.keyless.options(
        f"{path}/1?{query}",
        headers={
            **origin,
            "access-control-request-method": "PUT",
            "access-control-request-headers": "content-type",
        },
    )
    assert asked.status_code == 200
    assert "PUT" in asked.headers["access-control-allow-methods"]
    sent = box.keyless.put(f"{path}/1?{query}", content=PNG, headers=origin)
    assert "etag" in sent.headers["access-control-expose-headers"].lower()
