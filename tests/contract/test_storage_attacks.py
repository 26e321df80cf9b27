"""What strangers store and ask for: files that could be pages, many ranges, paths that lead out."""

import http.client
import time

import pytest

from tests.contract.storage_box import CANARY, KEY, PNG, SHORT, Box, box

__all__ = ["box"]

RANGE_SECONDS = 0.5
"""For an answer to a request for many ranges; what is promised is a tenth of that."""

POLYGLOTS = {
    "gif and script": (b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)//", "image/gif"),
    "png and page": (PNG + b"<html><script>alert(1)</script></html>", "image/png"),
    "jpeg and php": (b"\xff\xd8\xff\xe0<?php system($_GET[0]); ?>", "image/jpeg"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", None),
    "page": (b"<!doctype html><script>alert(1)</script>", None),
    "page after a bom": (b"\xef\xbb\xbf<html onload=alert(1)>", None),
    "utf-16 page": (b"\xff\xfe<\x00s\x00v\x00g\x00", None),
    "xml": (b"<?xml version='1.0'?><x xmlns='http://www.w3.org/1999/xhtml'/>", None),
    "script": (b"alert(document.domain)", None),
    "pdf": (b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>", None),
    "flash": (b"CWS\x0a" + bytes(40), None),
    "archive": (b"PK\x03\x04" + bytes(40), None),
    "html in riff": (b"RIFF<html>WEBPVP8 <script>alert(1)</script>", None),
    "manifest": (b"CACHE MANIFEST\n/\n", None),
}


@pytest.mark.parametrize("announced", ["text/html", "image/svg+xml", "image/png\r\n x: y"])
@pytest.mark.parametrize("name", POLYGLOTS)
def test_polyglots_are_never_active(box: Box, name: str, announced: str) -> None:
    """Whatever they are said to be, they are pictures, or bytes to save: never pages or scripts."""
    data, picture = POLYGLOTS[name]
    said = announced.replace("\r\n", "")
    path = box.upload(
        data, **{"content-type": said, "x-fal-file-name": "x.html", "x-fal-object-lifecycle": "{}"}
    )
    assert path.rpartition(".")[2] in ("bin", "png")
    size = len(data)
    for headers, status in (
        ({}, 200),
        ({"range": "bytes=0-3"}, 206),
        ({"range": "bytes=0-3,5-6"}, 206),
        ({"range": f"bytes={size}-"}, 416),
        ({"if-none-match": f'"{path.rpartition("/")[2]}"'}, 304),
    ):
        for method in ("GET", "HEAD"):
            answer = box.keyless.request(method, path, headers={"accept": "text/html", **headers})
            assert answer.status_code == status
            given = answer.headers
            assert given["x-content-type-options"] == "nosniff"
            assert given["content-security-policy"] == "default-src 'none'; sandbox"
            assert given["cross-origin-resource-policy"] == "cross-origin"
            if status not in (200, 206) or given["content-type"].startswith("multipart/"):
                continue
            if picture:
                assert (given["content-type"], given["content-disposition"]) == (picture, "inline")
            else:
                assert given["content-disposition"] == "attachment"
                assert given["content-type"] in (
                    "application/octet-stream",
                    "text/plain; charset=utf-8",
                )


def test_ranges_and_etags(box: Box) -> None:
    """A part of a file, none that lies outside, and nothing when the caller has it already."""
    data = bytes(range(256)) * 40
    path = box.upload(data)
    whole = box.keyless.get(path)
    assert whole.headers["accept-ranges"] == "bytes"
    etag = whole.headers["etag"]
    assert box.keyless.head(path).headers["content-length"] == str(len(data))
    part = box.keyless.get(path, headers={"range": "bytes=100-199", "if-range": etag})
    assert (part.status_code, part.content) == (206, data[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(data)}"
    assert box.keyless.get(path, headers={"range": "bytes=-5"}).content == data[-5:]
    other = box.keyless.get(path, headers={"range": "bytes=1-2", "if-range": '"other"'})
    assert (other.status_code, other.content) == (200, data)
    for tags in (etag, f'"x", W/{etag}', "*"):
        assert box.keyless.get(path, headers={"if-none-match": tags}).status_code == 304
    assert box.keyless.get(path, headers={"if-none-match": '"x"'}).status_code == 200


@pytest.mark.parametrize("count", [100, 101, 10_000])
def test_many_ranges_are_cheap(box: Box, count: int) -> None:
    """Up to a hundred are served, more are not even read (CVE-2025-62727)."""
    data = bytes(500_000)
    path = box.upload(data)
    ranges = "bytes=" + ",".join(f"{start}-" for start in range(count))
    started = time.monotonic()
    answer = box.keyless.get(path, headers={"range": ranges})
    assert time.monotonic() - started < RANGE_SECONDS
    assert answer.status_code in ((206,) if count == 100 else (200, 400, 431))
    assert len(answer.content) <= len(data)


UPS = (
    *("../", "..\\", "%2e%2e/", "%2e%2e%2f", "..%2f", "..%5c", "%2e%2e%5c", "..%252f"),
    *("%252e%252e%252f", "..%c0%af", "%c0%ae%c0%ae/", "....//", "..;/", "..%00/", "%2e/../"),
    *("..%ef%bc%8f", ".%2e/", "%u002e%u002e/", "/..//", "%5c..%5c"),
)
TARGETS = ("canary.txt", "data/queue.sqlite3", "data/keys/upload-tickets.key", "etc/passwd")
TRAVERSALS = [up * (2 + index) + target for up in UPS for index, target in enumerate(TARGETS)]


def test_80_traversals_reach_nothing_outside(box: Box) -> None:
    """In names, upload ids, part numbers and file names: nothing is read or written out there."""
    assert len(TRAVERSALS) == 80
    secrets = [CANARY.encode(), b"SQLite format", b"root:x:0"]
    secrets.append((box.server.data_dir / "keys" / "upload-tickets.key").read_bytes())
    before = box.digests()
    said = box.announce("-multipart")
    path, _, query = said["upload"].partition("?")
    ticket, name = query.removeprefix("ticket="), said["file"].rpartition("/")[2]
    host = box.server.http.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    auth = {"authorization": f"Key {KEY}"}
    stored = []
    for payload in TRAVERSALS:
        for method, target in (
            ("GET", f"/files/{payload}"),
            ("HEAD", f"/files/{payload}"),
            ("GET", f"/files/{name}/{payload}"),
            ("PUT", f"/uploads/{payload}?{query}"),
            ("PUT", f"/uploads/{name}/{payload}?{query}"),
            ("PUT", f"/uploads/{name}?ticket={payload}"),
            ("POST", f"/uploads/{payload}/complete?{query}"),
            ("PUT", f"/files/{payload}/multipart/{ticket}/1"),
            ("PUT", f"/files/{name}/multipart/{payload}/1"),
            ("PUT", f"/files/{name}/multipart/{ticket}/{payload}"),
        ):
            connection.request(method, target, b"evil" if method != "GET" else None, auth)
            refused = connection.getresponse()
            body = refused.read()
            assert 400 <= refused.status < 500, (method, target, refused.status)
            assert not any(secret in body for secret in secrets), (method, target)
        answer = box.keyed.post(
            "/files/upload",
            content=b"x",
            headers={
                "x-fal-file-name": payload,
                "content-type": payload,
                **SHORT,
            },
        )
        stored.append(answer.json()["access_url"])
        for kind in ("", "-multipart"):
            answer = box.keyed.post(
                f"/rest/storage/upload/initiate{kind}",
                json={"file_name": payload, "content_type": payload},
            )
            stored.append(answer.json()["file_url"])
    connection.close()
    for url in stored:
        assert url.startswith(f"{box.server.http}/files/")
        word, _, suffix = url.rpartition("/")[2].partition(".")
        assert (len(word), suffix) == (32, "bin")
        assert set(word) <= set("0123456789abcdef")
    assert path == f"/uploads/{name}"
    assert box.digests() == before
