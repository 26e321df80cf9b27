"""Forms with files: what real clients send, and what nobody should."""

import httpx2
import pytest

from server.errors import RequestError
from server.routes.multipart import MAX_PARTS, MAX_TYPE_CHARACTERS, Part, read_parts

TYPE = "multipart/form-data; boundary=edge"


def parts(body: bytes, content_type: str = TYPE) -> list[tuple[str, bool, bytes]]:
    """Take a form apart into plain values."""
    return [(part.name, part.is_file, bytes(part.data)) for part in read_parts(body, content_type)]


def field(name: str, value: bytes, extra: str = "") -> bytes:
    """Write one part, with its delimiter."""
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def test_what_a_real_client_sends() -> None:
    """Fields and several files of one name come out as they went in, byte for byte."""
    data = bytes(range(256)) * 40 + b"\r\n--almost\r\n\r\n"
    request = httpx2.Request(
        "POST",
        "http://box",
        data={"prompt": "ein Löwe", "n": "2"},
        files=[("image[]", ("a.png", data, "image/png")), ("image[]", ("b.png", b""))],
    )
    assert parts(request.read(), request.headers["content-type"]) == [
        ("prompt", False, "ein Löwe".encode()),
        ("n", False, b"2"),
        ("image[]", True, data),
        ("image[]", True, b""),
    ]


def test_what_stands_around_the_parts_is_nothing() -> None:
    """A preamble, blanks behind a delimiter, and what follows the last one (RFC 2046)."""
    body = b"hello\r\n" + field("a", b"1").replace(b"--edge\r", b"--edge \t\r") + b"--edge--\r\nbye"
    assert parts(body) == [("a", False, b"1")]
    assert parts(b"\r\n" + field("a", b"1") + b"--edge--") == [("a", False, b"1")]
    assert parts(b"--edge--") == []


@pytest.mark.parametrize(
    "filename", ["Löwe.png", "ライオン" * 60 + ".png", 'a"; name="mask', "a;b.png"]
)
def test_names_of_files_do_not_matter(filename: str) -> None:
    """Browsers write them as bare UTF-8; others escape them. None of them names another field."""
    quoted = filename.replace('"', "%22")
    body = field("image", b"1", f'; filename="{quoted}"') + b"--edge--"
    assert parts(body) == [("image", True, b"1")]
    request = httpx2.Request("POST", "http://box", files={"image": (filename, b"1")})
    assert parts(request.read(), request.headers["content-type"]) == [("image", True, b"1")]


def test_a_quoted_boundary_and_a_quote_in_a_name() -> None:
    """Both are read as written in quotes."""
    body = field('a\\"b', b"1").replace(b"edge", b"e d") + b"--e d--"
    assert parts(body, 'Multipart/Form-Data; boundary="e d"') == [('a"b', False, b"1")]


@pytest.mark.parametrize(
    "extra",
    [
        "; filename*0=a; filename*=b",
        "; filename*=idna'en'%ff",
        "; filename*=punycode'en'%ff",
        "; filename*=a\0b'en'x",
        "; filename*" + "9" * 5000 + "=x",
        "; FileName=a.png;",
    ],
)
def test_what_a_file_is_called_is_not_read(extra: str) -> None:
    """That it has a name makes it a file, in whatever charset of RFC 2231 the name is broken."""
    assert parts(field("image", b"1", extra) + b"--edge--") == [("image", True, b"1")]


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"", TYPE, "does not occur"),
        (b"--edge", TYPE, "followed by something else"),
        (field("a", b"1"), TYPE, "no end"),
        (field("a", b"1") + b"--edge", TYPE, "followed by something else"),
        (field("a", b"1") + b"--edgeless\r\n", TYPE, "followed by something else"),
        (b"--edge\r\n\r\nx\r\n--edge--", TYPE, "no headers"),
        (b"--edge\r\nX: y\r\n\r\nx\r\n--edge--", TYPE, "no name"),
        (field("a" * 9000, b"1") + b"--edge--", TYPE, "too long"),
        (field("a", b"1") * (MAX_PARTS + 1) + b"--edge--", TYPE, "more than 100"),
        (field("a", b"1") + b"--edge--", "multipart/form-data", "names no boundary"),
        (b"--\r\n\r\n----", "multipart/form-data; boundary=", "names no boundary"),
        (b"", "multipart/form-data; boundary*=idna'en'%ff", "names no boundary"),
        (b"", "multipart/form-data; boundary*=a\0b'en'x", "names no boundary"),
        (b"", f"{TYPE}; x={'y' * MAX_TYPE_CHARACTERS}", "content type is too long"),
        (b"", f'{TYPE}; x="{";" * 900}', "not well-formed"),
        (b"", f"{TYPE}; boundary=other", "the same thing twice"),
        (field("a", b"1", "; x=y z") + b"--edge--", TYPE, "not well-formed"),
        (field("a", b"1", "; name=b") + b"--edge--", TYPE, "the same thing twice"),
        (field("a", b"1").replace(b"name=", b"name*=") + b"--edge--", TYPE, "no name"),
        (field("a", b"1").replace(b'name="a"', b"name*=idna'a'%ff") + b"--edge--", TYPE, "no name"),
    ],
)
def test_what_is_broken_is_a_400(body: bytes, content_type: str, reason: str) -> None:
    """Never a guess, and never a fault of ours."""
    with pytest.raises(RequestError, match=reason) as caught:
        read_parts(body, content_type)
    assert caught.value.status == 400


def test_a_field_that_is_no_text_is_a_400() -> None:
    """Of a field, not of a file, whose bytes may be anything."""
    with pytest.raises(RequestError, match="'prompt' is not UTF-8"):
        Part("prompt", False, memoryview(b"\xff")).text()
