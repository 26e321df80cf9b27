"""SHA-256 of large files, computed once: remembered by path, size and time of change."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from server.durable import write_durable

CACHE_NAME = "hashes.json"


class FileHashes:
    """The hashes that one folder remembers. `on_read` hears of each file that must be read."""

    def __init__(self, folder: Path, on_read: Callable[[Path], None] = lambda _: None) -> None:
        self._path = folder / CACHE_NAME
        self._on_read = on_read
        self._known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._known = dict(json.loads(self._path.read_text(encoding="utf-8")).items())

    def of(self, told: Mapping[str, Any]) -> str | None:
        """Return the hash of a file as it was told of: its path, size and time of change.

        None when the file is another one by now, or none, and was not hashed while it was there.
        """
        key = f"{told['size_bytes']} {told['modified_ns']} {told['path']}"
        if key not in self._known:
            path = Path(told["path"])
            try:
                seen = path.stat()
                if (seen.st_size, seen.st_mtime_ns) != (told["size_bytes"], told["modified_ns"]):
                    return None
                self._on_read(path)
                with path.open("rb") as file:
                    self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                return None
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_durable(self._path, json.dumps(self._known, sort_keys=True).encode("utf-8"))
        return self._known[key]
