"""What a stored file is: by its bytes alone, for what its sender says of it is never served."""

import codecs
import re

SUFFIXES = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/heif": "heif",
    "text/plain": "txt",
}
OTHER_SUFFIX = "bin"

OTHER_TYPE = "application/octet-stream"
TEXT_TYPE = "text/plain; charset=utf-8"
SHOWN_TYPES = frozenset(kind for kind in SUFFIXES if kind.startswith("image/"))
"""What a browser may show in place. None of these can carry a script."""

HEAD_BYTES = 512
"""How much of a file's start `type_of` wants to see."""

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)

_BRANDS = (
    ({b"avif", b"avis"}, "image/avif"),
    ({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}, "image/heic"),
    ({b"mif1", b"msf1"}, "image/heif"),
)
"""Brands of the ISO base media file format, the narrower ones first."""


def type_of(head: bytes) -> str:
    """Return the content type to serve a file under whose first `HEAD_BYTES` are `head`.

    Only pictures and text are told apart. HTML, SVG and scripts are text like any other.
    """
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:8] == b"ftyp":
        return _type_of_brands(head)
    return TEXT_TYPE if _is_text(head) else OTHER_TYPE


def suffix_for(announced: str) -> str:
    """Return the suffix for a file that is announced as this content type; `bin` if not known."""
    return SUFFIXES.get(announced.partition(";")[0].strip().lower(), OTHER_SUFFIX)


def _type_of_brands(head: bytes) -> str:
    end = min(int.from_bytes(head[:4]), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
    return next((kind for known, kind in _BRANDS if known & brands), OTHER_TYPE)


def _is_text(head: bytes) -> bool:
    """Say whether it is UTF-8 without control characters; the last character may be cut off."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(head) and not re.search(r"[\x00-\x08\x0b\x0e-\x1f\x7f]", text)
