"""Stored files: whole or absent, under our names only."""

import errno
import os
from pathlib import Path

import pytest

from server.files import FileStore, new_name


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    """Return a file store over a folder that does not exist yet."""
    return FileStore(tmp_path / "files")


def test_written_bytes_are_found(files: FileStore) -> None:
    """A stored file is there with its bytes, under a new unguessable name each time."""
    first, second = files.write(b"one", "png"), files.write(b"one", "png")
    assert first != second
    assert len(first) == 32 + len(".png")
    path = files.find(first)
    assert path is not None
    assert path.read_bytes() == b"one"


def test_delete_and_sweep(files: FileStore, tmp_path: Path) -> None:
    """Deleted files are gone, twice is fine, and a sweep keeps only what is known."""
    keep, drop, orphan = (files.write(b"x", "png") for _ in range(3))
    (tmp_path / "files" / "ab").mkdir(exist_ok=True)
    (tmp_path / "files" / "ab" / "left.part").write_bytes(b"half")
    files.delete(drop)
    files.delete(drop)
    assert files.find(drop) is None
    assert files.sweep({keep}) == 2
    assert files.find(keep) is not None
    assert files.find(orphan) is None


@pytest.mark.parametrize(("failing_sync", "least_syncs"), [(1, 5), (2, 5), (3, 5), (4, 6)])
def test_a_failed_sync_leaves_nothing(
    files: FileStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing_sync: int,
    least_syncs: int,
) -> None:
    """No file is left, and the next try syncs again what the failed one has not.

    There are four: the new folder of all files, the new sub-folder, the file, and its entry.
    """
    sync, calls = os.fsync, 0

    def fail_once(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_sync:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.write(b"x", "png")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    name = files.write(b"x", "png")
    assert files.find(name) is not None
    assert calls >= least_syncs


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "a" * 32,
        "A" * 32 + ".png",
        "a" * 31 + "/.png",
        "a" * 32 + ".png\n",
        "a" * 32 + ".png\x00",
        "/" + "a" * 32 + ".png",
        "a" * 32 + ".",
    ],
)
def test_names_that_are_not_ours_find_nothing(files: FileStore, name: str) -> None:
    """Only names of our own making reach the disk at all."""
    assert files.find(name) is None
    files.delete(name)


def test_a_symbolic_link_is_not_served(files: FileStore, tmp_path: Path) -> None:
    """A link planted in the folder leads nowhere."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    name = files.write(b"x", "png")
    path = files.find(name)
    assert path is not None
    path.unlink()
    path.symlink_to(secret)
    assert files.find(name) is None


def test_a_full_disk_leaves_nothing_behind(
    files: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk refuses, the error comes out and no part of the file stays."""

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.files.os.fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        files.write(b"x", "png")
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []


def test_a_draft_has_no_name_until_it_is_kept(files: FileStore, tmp_path: Path) -> None:
    """What is written piece by piece, or taken from another file, appears whole."""
    name = new_name("png")
    piece = tmp_path / "piece"
    piece.write_bytes(b"three")
    draft = files.draft(name)
    draft.write(b"one,")
    draft.write(b"two,")
    draft.append(piece)
    assert files.find(name) is None
    draft.keep()
    draft.discard()
    path = files.find(name)
    assert path is not None
    assert path.read_bytes() == b"one,two,three"
    assert draft.size_bytes == len(b"one,two,three")
    assert not draft.temporary.exists()


def test_a_discarded_draft_leaves_nothing(files: FileStore, tmp_path: Path) -> None:
    """Neither one that was written to, nor one that was closed, nor one left to the sweep."""
    written, closed, left = (files.draft(new_name("png")) for _ in range(3))
    written.write(b"x")
    closed.write(b"xy")
    closed.close()
    assert closed.temporary.read_bytes() == b"xy"
    written.discard()
    closed.discard()
    left.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [left.temporary]
    assert files.sweep(set()) == 1
