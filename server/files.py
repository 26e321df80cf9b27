"""Stored files: the images of answers, on local disk, under names nobody can guess.

A file is on disk, synced, before any row mentions it; what no row mentions is swept at start.
"""

import contextlib
import os
import re
import secrets
from pathlib import Path

NAME_PATTERN = re.compile(r"[0-9a-f]{32}\.[a-z0-9]{1,8}")
URL_PREFIX = "/files/"


class FileStore:
    """The files of one data folder, spread over 256 sub-folders by the start of their name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, data: bytes, suffix: str) -> str:
        """Store `data` durably and return its new name: 128 random bits and `.suffix`.

        Raises OSError when the disk refuses; nothing is left behind then.
        """
        name = f"{secrets.token_hex(16)}.{suffix}"
        path = self._path(name)
        _make_folder(path.parent)
        temporary = path.with_suffix(".part")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            _sync_folder(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        return name

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
