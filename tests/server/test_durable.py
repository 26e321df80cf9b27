"""Files for one account only: whole or not there, and owned by whom they are for."""

import os
import stat
from pathlib import Path

import pytest

from server.durable import make_private_folder, write_durable


def test_nobody_else_may_read(tmp_path: Path) -> None:
    """Folder and file are the owner's alone, though others could before and the umask lets them."""
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        make_private_folder(folder)
        write_durable(folder / "key", b"secret")
    finally:
        os.umask(before)
    assert (folder / "key").read_bytes() == b"secret"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses the sync costs nothing but the change, and nothing is left behind."""
    path = tmp_path / "key"
    write_durable(path, b"old")

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        write_durable(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_root", [True, False])
def test_root_leaves_them_to_the_folder_s_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_root: bool
) -> None:
    """What an administrator makes can be read by the server; others change no owner."""
    given: list[tuple[str, int, int]] = []

    def note(path: Path, user: int, group: int) -> None:
        given.append((path.name.lstrip(".").partition(".")[0], user, group))

    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    monkeypatch.setattr(os, "chown", note)
    make_private_folder(tmp_path / "keys")
    write_durable(tmp_path / "keys" / "key", b"secret")
    above = tmp_path.stat()
    expected = [("keys", above.st_uid, above.st_gid), ("key", above.st_uid, above.st_gid)]
    assert given == (expected if is_root else [])
