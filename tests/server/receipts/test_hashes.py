"""Hashes of large files: computed once, and never of another file."""

import hashlib
import os
from pathlib import Path
from typing import Any

from server.receipts.hashes import FileHashes


def tell(path: Path) -> dict[str, Any]:
    """Describe a file as a build does."""
    seen = path.stat()
    return {"path": str(path), "size_bytes": seen.st_size, "modified_ns": seen.st_mtime_ns}


def test_each_file_is_read_once(tmp_path: Path) -> None:
    """Also by the next process, and after the file is gone."""
    path, read = tmp_path / "weights", list[Path]()
    path.write_bytes(b"numbers")
    told, expected = tell(path), hashlib.sha256(b"numbers").hexdigest()
    for _ in range(2):
        assert FileHashes(tmp_path / "cache", read.append).of(told) == expected
    path.unlink()
    assert FileHashes(tmp_path / "cache", read.append).of(told) == expected
    assert read == [path]


def test_a_file_that_changed_has_no_hash(tmp_path: Path) -> None:
    """Size or time of change is enough, and a file that is gone has none either."""
    path = tmp_path / "weights"
    path.write_bytes(b"numbers")
    told = tell(path)
    os.utime(path, ns=(0, told["modified_ns"] + 1))
    assert FileHashes(tmp_path).of(told) is None
    path.unlink()
    assert FileHashes(tmp_path).of(told) is None


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    """It holds nothing that cannot be computed again."""
    path = tmp_path / "weights"
    path.write_bytes(b"")
    for damage in ("{", "[]", "7"):
        (tmp_path / "hashes.json").write_text(damage)
        assert FileHashes(tmp_path).of(tell(path)) == hashlib.sha256(b"").hexdigest()
