"""A TOML file of settings, and the mistakes in settings in words for the operator."""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from server.errors import ConfigurationError


def read_toml(path: Path) -> dict[str, Any]:
    """Read the file. Raises `ConfigurationError` when it cannot be read or is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from error


def unknown_keys(
    keys: Iterable[str],
    known: Sequence[str],
    prefix: str = "",
    spell: Callable[[str], str] = str,
) -> list[str]:
    """Name each key that is not known, with the nearest that is, both as `spell` writes them."""
    mistakes = []
    for key in keys:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        mistakes.append(f"{prefix}unknown setting {spell(key)}; did you mean {spell(near[0])}?")
    return mistakes


def list_mistakes(error: ValidationError) -> list[str]:
    """Name each value that is not allowed, with its place."""
    return [
        f"{'.'.join(map(str, item['loc']))}: {item['msg']} (got {item['input']!r})"
        for item in error.errors()
        if item["type"] != "default_factory_not_called"  # for want of a value told of already
    ]
