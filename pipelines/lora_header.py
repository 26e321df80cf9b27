"""What a LoRA file says of itself, before any number of it is read. No torch.

Only safetensors is read: a length, a header of JSON, and raw numbers, nothing that could run code
(https://github.com/huggingface/safetensors#format). A file is judged by its content, not its name.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipelines.errors import LoraError

MOST_HEADER_BYTES = 10_000_000
"""A tenth of safetensors' own limit. LoRAs of all layers of FLUX.2 [dev] have some 100 kB."""

DTYPE_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
"""The types of numbers that are read."""

MOST_DIMENSIONS = 8
MOST_SIZE = 2**40
"""Of one dimension, and of an offset: numbers beyond it are a trap, and slow to multiply."""

LENGTH = struct.Struct("<Q")

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How files of `torch.save` begin, which are zip archives of pickles, and pickles themselves."""

_NOT_AS_EXPECTED = (
    *(struct.error, LookupError, ValueError, TypeError),
    *(AttributeError, OverflowError, RecursionError),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: its type, its shape, and where its bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """All tensors by their keys, and what the trainer noted beside them."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(file: BinaryIO) -> Header:
    """Read the header of an open file, from its start.

    Raises `LoraError`, which says why without naming the file, for anything but a whole safetensors
    file of floating-point numbers whose bytes are all accounted for. Raises OSError.
    """
    size_bytes = file.seek(0, 2)
    file.seek(0)
    start = file.read(LENGTH.size + 1)
    if len(start) <= LENGTH.size or start[-1:] != b"{":
        raise LoraError(_describe_stranger(start))
    (header_bytes,) = LENGTH.unpack(start[: LENGTH.size])
    if header_bytes > MOST_HEADER_BYTES:
        raise LoraError(f"its header is longer than {MOST_HEADER_BYTES} bytes")
    if header_bytes > size_bytes - LENGTH.size:
        raise LoraError("not a whole safetensors file")
    file.seek(LENGTH.size)
    try:
        header = json.loads(file.read(header_bytes))
        metadata = {
            _read_text(key): _read_text(value)
            for key, value in header.pop("__metadata__", {}).items()
        }
        tensors = {
            _read_text(key): _read_entry(entry, LENGTH.size + header_bytes)
            for key, entry in header.items()
        }
    except _NOT_AS_EXPECTED as error:
        raise LoraError("not a safetensors file") from error
    _check_bytes(tensors, LENGTH.size + header_bytes, size_bytes)
    return Header(tensors, metadata)


def _read_entry(entry: Mapping[str, Any], data_begin: int) -> Entry:
    """Read where a tensor lies. Raises one of `_NOT_AS_EXPECTED` before it counts with a number."""
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError("too many dimensions")
    for number in (*shape, begin, end):
        if type(number) is not int or not 0 <= number <= MOST_SIZE:
            raise ValueError("not a size or an offset")
    return Entry(_read_text(entry["dtype"]), tuple(shape), data_begin + begin, data_begin + end)


def _read_text(value: Any) -> str:
    """Return text that can be told and logged: JSON's escapes make halves of characters, too."""
    text = str(value)
    text.encode()
    return text


def _check_bytes(tensors: Mapping[str, Entry], begin: int, end: int) -> None:
    """Refuse types that are not read, and tensors that do not fill the file one after another."""
    for key, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.dtype not in DTYPE_BYTES:
            raise LoraError(f"{key} is of type {entry.dtype}, not {', '.join(DTYPE_BYTES)}")
        size_bytes = math.prod(entry.shape) * DTYPE_BYTES[entry.dtype]
        if (entry.begin, entry.end) != (begin, begin + size_bytes):
            raise LoraError(f"not a safetensors file: {key} is not where it should be")
        begin = entry.end
    if begin != end:
        raise LoraError("cut short, or longer than its header says")


def _describe_stranger(start: bytes) -> str:
    if start.startswith(_PICKLES):
        return "a pickle, which could run code: only safetensors files are read"
    return "not a safetensors file"
