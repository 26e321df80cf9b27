"""What files are, by their bytes."""

import io

import pytest
from PIL import Image

from server.media import HEAD_BYTES, OTHER_TYPE, SHOWN_TYPES, TEXT_TYPE, suffix_for, type_of


def picture(kind: str) -> bytes:
    """Return a picture as Pillow writes it."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_pictures_are_known_by_their_start(kind: str) -> None:
    """What Pillow writes is recognised."""
    found = type_of(picture(kind)[:HEAD_BYTES])
    assert found == f"image/{kind.lower()}"
    assert found in SHOWN_TYPES


@pytest.mark.parametrize(
    ("brands", "expected"),
    [
        (b"heic____mif1heic", "image/heic"),
        (b"mif1____mif1heix", "image/heic"),
        (b"mif1____mif1avif", "image/avif"),
        (b"mif1____mif1miaf", "image/heif"),
        (b"isom____isommp42", OTHER_TYPE),
    ],
)
def test_brands_tell_what_is_in_the_box(brands: bytes, expected: str) -> None:
    """The compatible brands count beside the major one, and a film is no picture."""
    head = (len(brands) + 8).to_bytes(4) + b"ftyp" + brands + b"\x00\x00\x00\x00avif"
    assert type_of(head) == expected


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", OTHER_TYPE),
        (b"Hello, World!", TEXT_TYPE),
        ("Gr\u00fc\u00dfe".encode()[:-3], TEXT_TYPE),  # cut in the middle of a character
        (b"<html><script>alert(1)</script>", TEXT_TYPE),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", TEXT_TYPE),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", OTHER_TYPE),
        (b"PK\x03\x04", OTHER_TYPE),
        (b"MZ\x90\x00", OTHER_TYPE),
        (b"\xff\xfe<\x00h\x00", OTHER_TYPE),
        (b"+/v8-\x00", OTHER_TYPE),
        (b"RIFF\x00\x00\x00\x00WAVE", OTHER_TYPE),
        (b"BM" + bytes(60), OTHER_TYPE),
    ],
)
def test_everything_else_is_never_shown(head: bytes, expected: str) -> None:
    """Pages, scripts, documents and programs are text or bytes, to be saved and not opened."""
    assert type_of(head) == expected
    assert expected not in SHOWN_TYPES


@pytest.mark.parametrize(
    ("announced", "suffix"),
    [
        ("image/png", "png"),
        ("IMAGE/JPEG; q=1", "jpeg"),
        ("text/plain;charset=utf-8", "txt"),
        ("text/html", "bin"),
        ("image/svg+xml", "bin"),
        ("image/../../x", "bin"),
        ("", "bin"),
    ],
)
def test_suffixes_come_from_a_closed_list(announced: str, suffix: str) -> None:
    """Whatever a sender says, no suffix is one that a browser or a shell would run."""
    assert suffix_for(announced) == suffix
