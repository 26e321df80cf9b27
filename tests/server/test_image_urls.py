"""Whose file a URL means, and what a request will have to wait for."""

from typing import Any

import pytest

from server.catalogue import find_endpoint
from server.image_urls import MAX_URL_CHARACTERS, need_of, own_file_name
from server.jobs import Need

NAME = "0123456789abcdef" * 2 + ".png"
ORIGIN = "https://box.example:8443"
NAMES = frozenset({"v3.fal.media", "localhost"})
OWN = f"http://box.example/files/{NAME}"
DATA = "data:image/png;base64,AAAA"
FOREIGN = "https://images.example/a.png"
EDIT, PLAIN = find_endpoint("fal-ai/flux-2/flash/edit"), find_endpoint("fal-ai/flux-2")


@pytest.mark.parametrize(
    "url",
    [
        f"https://v3.fal.media/files/{NAME}",
        f"https://V3.FAL.MEDIA.:1234/files/{NAME}?x=1#y",
        f"http://localhost:9/files/{NAME}",
        OWN,
        f"https://box.example.:1/files/{NAME}",
        f"https://someone:secret@localhost/files/{NAME}",
    ],
)
def test_our_files_are_ours_under_all_our_names(url: str) -> None:
    """The names of fal, loopback and the name the caller used lead here, on any port."""
    assert own_file_name(url, ORIGIN, NAMES) == NAME


@pytest.mark.parametrize(
    "url",
    [
        f"https://stranger.example/files/{NAME}",
        f"https://localhost@stranger.example/files/{NAME}",
        f"https://localhost.stranger.example/files/{NAME}",
        f"https://stranger.example/?u=https://localhost/files/{NAME}",
        f"https://localhost/files/b/{NAME}",
        f"https://localhost/files/../files/{NAME}",
        "https://localhost/files/other.png",
        f"https://localhost/x?u=/files/{NAME}",
        f"ftp://localhost/files/{NAME}",
        f"/files/{NAME}",
        f"https://[localhost/files/{NAME}",
        f"https://localhost/files/{NAME}?{'x' * MAX_URL_CHARACTERS}",
        "",
    ],
)
def test_nothing_else_is_ours(url: str) -> None:
    """A stranger's host stays one whatever it is called, and our other paths are no files."""
    assert own_file_name(url, ORIGIN, NAMES) is None


@pytest.mark.parametrize(
    ("urls", "need"),
    [
        ([DATA, OWN], Need.DECODING),
        ([DATA.upper()], Need.DECODING),
        ([DATA, FOREIGN], Need.FETCHING),
        ([" " + DATA], Need.FETCHING),
        ([DATA, DATA, DATA, DATA, FOREIGN], Need.DECODING),
        ([], Need.DECODING),
        ([None, 5, {}], Need.DECODING),
        ("text", Need.DECODING),
        (None, Need.DECODING),
    ],
)
def test_what_a_request_waits_for(urls: Any, need: Need) -> None:
    """Only images from elsewhere, among those that are used, make it wait for strangers."""
    assert need_of(EDIT, {"image_urls": urls}, ORIGIN, NAMES) is need
    assert need_of(PLAIN, {"image_urls": urls}, ORIGIN, NAMES) is Need.NOTHING


@pytest.mark.parametrize("body", [None, [], "x", 5, {}])
def test_any_body_has_a_need(body: Any) -> None:
    """Bodies are not validated yet when this is asked."""
    assert need_of(EDIT, body, ORIGIN, NAMES) is Need.DECODING
