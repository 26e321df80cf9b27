"""The operator's LoRAs: which file of their folder a name means.

A LoRA lies there as `NAME.safetensors` or, alone, in a folder of that name. Names of Hugging Face
repositories are such names too.
"""

import re
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

SUFFIX = ".safetensors"

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}"
_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,2}}")


def find_local(folder: Path | None, name: str) -> Path | None:
    """Return the file of this name, or None.

    No name leads out of the folder, or to what begins with a dot; the operator's own links do.
    What cannot be looked at is not there, and the log says so.
    """
    if folder is None or not _NAME.fullmatch(name):
        return None
    path = folder / name
    try:
        return _find(path)
    except OSError as error:
        log.warning("cannot look for a LoRA", path=str(path), reason=error.strerror)
        return None


def _find(path: Path) -> Path | None:
    for candidate in (path, path.with_name(path.name + SUFFIX)):
        if candidate.suffix == SUFFIX and candidate.is_file():
            return candidate
    alone = [found for found in path.glob(f"[!.]*{SUFFIX}") if found.is_file()]
    return alone[0] if len(alone) == 1 else None
