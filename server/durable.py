"""Small files that only one account may read, and that survive a power cut.

That account is the server's. Where an administrator makes them as root, with a command beside
the server, they are left to whom the folder above belongs, or the server could not read them.
"""

import os
import secrets
from pathlib import Path


def make_private_folder(folder: Path) -> None:
    """Make the folder, or close one that is there to everybody else."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    _hand_over(folder)


def write_private(path: Path, content: bytes) -> None:
    """Replace the file in one step: a crash on the way leaves the old one, or none."""
    spare = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _hand_over(spare)
        spare.replace(path)
    finally:
        spare.unlink(missing_ok=True)
    for folder in (path.parent, path.parent.parent):
        _sync(folder)


def _hand_over(path: Path) -> None:
    if os.geteuid() == 0:
        above = path.parent.stat()
        os.chown(path, above.st_uid, above.st_gid)


def _sync(folder: Path) -> None:
    """Make what was renamed or made in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
