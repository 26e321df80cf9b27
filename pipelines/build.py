"""What images of one loaded pipeline come from: the model's files, the packages, the device.

Files are told by size and time of change, because reading a hundred gigabytes would keep a start
waiting; whoever needs their content's hashes computes them later, and once.
"""

import hashlib
import json
import secrets
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.types import TURBO_LORA_PATH, LoadOptions

PACKAGES = ("flux2-serve", "torch", "diffusers", "transformers", "numpy", "pillow")
PARTS = ("transformer", "vae", "text_encoder", "scheduler", "tokenizer")
ID_CHARACTERS = 16


def describe_build(options: LoadOptions, device: str, dtype: str) -> dict[str, Any]:
    """Return everything about a load that can change a picture, as plain JSON values."""
    lora = options.flash_lora or options.model / TURBO_LORA_PATH
    files = [path for part in PARTS for path in sorted((options.model / part).rglob("*"))]
    return {
        "model": options.model.name,
        "model_folder": str(options.model.resolve()),
        "files": [_tell(path) for path in files if path.is_file()],
        "lora": _tell(lora) if lora.is_file() else None,
        "versions": {name: _version(name) for name in PACKAGES},
        "device": device,
        "dtype": dtype,
        "compile": options.compile,
        "attention": options.attention,
        "flash_schedule": options.flash_schedule.value,
    }


def build_id(build: dict[str, Any]) -> str:
    """Return a short name of a build: equal builds have equal names."""
    text = json.dumps(build, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:ID_CHARACTERS]


def keep_build(build: dict[str, Any], folder: Path) -> str:
    """Write the build into `folder` under its id, unless it is there; return the id."""
    name = build_id(build)
    path = folder / f"{name}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        spare = folder / f".{name}.{secrets.token_hex(4)}"
        spare.write_text(json.dumps(build, sort_keys=True, indent=1), encoding="utf-8")
        spare.replace(path)
    return name


def _tell(path: Path) -> dict[str, Any]:
    seen = path.stat()
    return {
        "path": str(path.resolve()),
        "size_bytes": seen.st_size,
        "modified_ns": seen.st_mtime_ns,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
