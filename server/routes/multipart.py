"""Forms with files in them, `multipart/form-data` (RFC 7578), as OpenAI's edits are sent.

A body is bounded before it comes here, so it is read whole; its parts are views of it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from server.errors import RequestError

MAX_PARTS = 100
MAX_HEAD_BYTES = 8 * 1024
MAX_TYPE_CHARACTERS = 1024
LINE = b"\r\n"

PARAMETER = re.compile(
    r';[ \t]*+(?:([^\s;="]++)[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]*+)))?+[ \t]*+'
)
"""One `; name=value` of a header, or a `;` alone. It never goes back over what it has read."""

ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Part:
    """One field, or one file, whose name at its sender is used for nothing."""

    name: str
    is_file: bool
    data: memoryview

    def text(self) -> str:
        """Return a field's value. Raises `RequestError` 400 for one that is not UTF-8."""
        try:
            return bytes(self.data).decode("utf-8")
        except UnicodeDecodeError:
            raise _broken(f"the field {self.name!r} is not UTF-8") from None


def read_parts(body: bytes | bytearray, content_type: str) -> list[Part]:
    """Take a form apart. Raises `RequestError` 400 for one that is broken or has too many parts."""
    if len(content_type) > MAX_TYPE_CHARACTERS:
        raise _broken("its content type is too long")
    boundary = _read_parameters(content_type).get("boundary", "")
    if not (boundary.isascii() and 1 <= len(boundary) <= 70):
        raise _broken("its content type names no boundary")
    parts: list[Part] = []
    for start, end in _spans(body, b"--" + boundary.encode("ascii")):
        if len(parts) == MAX_PARTS:
            raise _broken(f"it has more than {MAX_PARTS} parts")
        parts.append(_read_part(body, start, end))
    return parts


def _spans(body: bytes | bytearray, dash: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each part begins and ends; what is before the first and behind the last is none.

    A delimiter stands at the beginning of a line, and ends that of the part before it.
    """
    delimiter = LINE + dash
    if body.startswith(dash):
        at = len(dash)
    else:
        at = body.find(delimiter) + len(delimiter)
        if at < len(delimiter):
            raise _broken("its boundary does not occur")
    while body[at : at + 2] != b"--":
        line_end = body.find(LINE, at)
        if line_end < 0 or bytes(body[at:line_end]).strip(b" \t"):
            raise _broken("a delimiter is followed by something else")
        end = body.find(delimiter, line_end)
        if end < 0:
            raise _broken("its last part has no end")
        yield line_end + len(LINE), end
        at = end + len(delimiter)


def _read_part(body: bytes | bytearray, start: int, end: int) -> Part:
    blank = body.find(LINE + LINE, start, min(end, start + MAX_HEAD_BYTES))
    if blank < 0:
        raise _broken("a part has no headers, or too long ones")
    given = _read_parameters(_find_disposition(bytes(body[start:blank])))
    if "name" not in given:
        raise _broken("a part has no name")
    # Also `filename*` and `filename*0` (RFC 2231), whose values nobody reads or finds wrong.
    is_file = any(key.partition("*")[0] == "filename" for key in given)
    return Part(given["name"], is_file, memoryview(body)[blank + len(LINE + LINE) : end])


def _find_disposition(head: bytes) -> str:
    """Return the header that names a part, empty where it has none."""
    for line in head.split(LINE):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            return value.decode("utf-8", "replace")
    return ""


def _read_parameters(header: str) -> dict[str, str]:
    """Return the parameters behind a header's first word, by their names in lower case."""
    found: dict[str, str] = {}
    at = len(header.partition(";")[0])
    while at < len(header):
        parameter = PARAMETER.match(header, at)
        if parameter is None:
            raise _broken("a header is not well-formed")
        name, quoted, plain = parameter.groups()
        if name and name.lower() in found:
            raise _broken("a header says the same thing twice")
        if name:
            found[name.lower()] = plain if quoted is None else ESCAPED.sub(r"\1", quoted)
        at = parameter.end()
    return found


def _broken(reason: str) -> RequestError:
    return RequestError(400, f"The form cannot be read: {reason}", "bad_request")
