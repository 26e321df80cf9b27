"""Stored files: the images of answers and uploads, on local disk, under names nobody can guess.

A file is on disk, synced, before any row mentions it; what no row mentions is swept at start.
"""

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

NAME_PATTERN = re.compile(r"[0-9a-f]{32}\.[a-z0-9]{1,8}")
URL_PREFIX = "/files/"
COPY_BYTES = 1024 * 1024


class FileStore:
    """The files of one data folder, spread over 256 sub-folders by the start of their name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, data: bytes, suffix: str) -> str:
        """Store `data` durably and return its `new_name`.

        Raises OSError when the disk refuses; nothing is left behind then.
        """
        name = new_name(suffix)
        draft = self.draft(name)
        try:
            draft.write(data)
            draft.keep()
        except OSError:
            draft.discard()
            raise
        return name

    def draft(self, name: str) -> "Draft":
        """Begin a file that will have this name, one of `new_name`.

        Raises OSError when the disk refuses.
        """
        return Draft(self._path(name))

    def find(self, name: str) -> Path | None:
        """Return where the file lies, or None when there is none or the name is not ours."""
        if not NAME_PATTERN.fullmatch(name):
            return None
        path = self._path(name)
        return path if path.is_file() and not path.is_symlink() else None

    def delete(self, name: str) -> None:
        """Delete the file; one that is gone already is fine."""
        if NAME_PATTERN.fullmatch(name):
            self._path(name).unlink(missing_ok=True)

    def sweep(self, known: set[str]) -> int:
        """Delete every file that is not in `known`; return how many there were."""
        orphans = [
            path for path in self._folder.glob("*/*") if path.is_file() and path.name not in known
        ]
        for path in orphans:
            path.unlink(missing_ok=True)
        return len(orphans)

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name


class Draft:
    """A file on its way in. Only `keep` makes a stored file of it; until then it has no name.

    It lies beside its place, so that keeping it is a rename, and a crash leaves it to the sweep.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        _make_folder(path.parent)
        self.temporary = path.with_name(f"{secrets.token_hex(16)}.part")
        self._file = self.temporary.open("xb")
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Append. Raises OSError when the disk takes no more."""
        self._file.write(data)
        self.size_bytes += len(data)

    def append(self, path: Path) -> None:
        """Append the bytes of another file. Raises OSError as `write` does."""
        with path.open("rb") as source:
            shutil.copyfileobj(source, self._file, COPY_BYTES)
        self.size_bytes += path.stat().st_size

    def close(self) -> None:
        """Have everything written, so that `temporary` can be read. Raises OSError."""
        self._file.close()

    def keep(self) -> None:
        """Give the file its name, durably. Raises OSError; nothing has that name then."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        try:
            self.temporary.rename(self._path)
            _sync_folder(self._path.parent)
        except OSError:
            self._path.unlink(missing_ok=True)
            raise

    def discard(self) -> None:
        """Drop what was not kept; harmless afterwards. What the disk holds on to is swept later."""
        with contextlib.suppress(OSError):  # it may still want to write, on a full disk
            self._file.close()
        with contextlib.suppress(OSError):
            self.temporary.unlink()


def new_name(suffix: str) -> str:
    """Return a name that nobody has and nobody can guess: 128 random bits and `.suffix`."""
    return f"{secrets.token_hex(16)}.{suffix}"


def _make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that their entries survive a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        try:
            _sync_folder(folder.parent)
        except OSError:
            # Left there, it would be taken for synced at the next try.
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
