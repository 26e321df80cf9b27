"""Small files, most of them secret, that survive a power cut.

They belong to the account of the server. Where an administrator makes them as root, with a
command beside the server, they are left to whom the folder above belongs: the server could not
read them otherwise.
"""

import os
import secrets
from pathlib import Path

PRIVATE = 0o600
"""Read and written by its owner alone."""


def make_private_folder(folder: Path) -> None:
    """Make the folder, or close one that is there to everybody else."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    _hand_over(folder)


def write_durable(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Replace the file in one step: a crash on the way leaves the old one, or none.

    At no moment can more accounts read it than `mode` says.
    """
    spare = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        spare.chmod(mode)  # whatever the umask took away
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
