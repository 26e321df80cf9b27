"""Whether a part's safetensors files are all there and whole, told by their headers alone.

No torch here, so that the server may ask before anything is loaded.
"""

import json
import struct
from pathlib import Path


def weight_files(folder: Path, stem: str) -> list[Path]:
    """List a part's weight files: the shards that its index names, or the single file."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [folder / f"{stem}.safetensors"]
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / shard for shard in sorted(shards)] or [index]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return [index]  # which `problem_of` then reports as unreadable


def problem_of(path: Path) -> str | None:
    """Say what is wrong with a safetensors file, by its header: a length, then JSON offsets.

    Format: https://github.com/huggingface/safetensors#format.
    """
    if not path.is_file():
        return "missing"
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > size_bytes:
                return "not a whole safetensors file"
            header = json.loads(file.read(header_bytes))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected_bytes = 8 + header_bytes + max(ends, default=0)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (
        *(struct.error, ValueError, KeyError, TypeError),
        *(IndexError, AttributeError, RecursionError),
    ):
        return "not a safetensors file"
    if size_bytes != expected_bytes:
        return f"cut short: {size_bytes} bytes of {expected_bytes}"
    return None
