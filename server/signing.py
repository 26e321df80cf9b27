"""The keys that webhooks are signed with, and the public half for who receives them.

fal's receivers take the SHA-256 of the body, put it on four lines with the request id, the user
id and the timestamp, and check the Ed25519 signature of that with any key of the published set.
"""

import base64
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.durable import make_private_folder, write_durable
from server.errors import ConfigurationError

KEY_NAME = "webhook-ed25519.pem"

PUBLISH_AHEAD_SECONDS = 48 * 3600
"""How long a further key is only published: receivers may keep the set for a day, and whatever
lies between may keep it for another."""


@dataclass(frozen=True, slots=True)
class _Key:
    private: Ed25519PrivateKey
    made_at: float  # the file's time of change

    @property
    def public(self) -> dict[str, str]:
        """The JSON Web Key of RFC 8037; its id is the thumbprint of RFC 7638."""
        required = {
            "crv": "Ed25519",
            "kty": "OKP",
            "x": _base64url(self.private.public_key().public_bytes_raw()),
        }
        canonical = json.dumps(required, sort_keys=True, separators=(",", ":"))
        kid = _base64url(hashlib.sha256(canonical.encode("ascii")).digest())
        return {**required, "kid": kid, "use": "sig"}


class Signer:
    """Signs with one key of a folder and publishes all of them: every `*.pem` there is a key.

    To change keys, add a new one and restart; it is published at once and signs after two days,
    and then the old file can go. `load` comes first, while nobody else uses the folder.
    """

    def __init__(self, folder: Path, wall_clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._wall_clock = wall_clock
        self._keys: list[_Key] = []

    def load(self) -> None:
        """Read the keys, or make the first one.

        Raises `ConfigurationError` for a file that is not an Ed25519 key in PEM form.
        """
        make_private_folder(self._folder)
        paths = sorted(self._folder.glob("*.pem"))
        if not paths:
            paths = [_make_key(self._folder)]
        self._keys = sorted(map(_read_key, paths), key=lambda key: key.made_at, reverse=True)

    def sign(self, request_id: str, user_id: str, timestamp: str, body: bytes) -> str:
        """Return the signature as hexadecimal text. `timestamp` is unix seconds as sent."""
        digest = hashlib.sha256(body).hexdigest()
        message = f"{request_id}\n{user_id}\n{timestamp}\n{digest}"
        return self._signing_key().private.sign(message.encode("utf-8")).hex()

    def jwks(self) -> dict[str, Any]:
        """Return the public keys as a JSON Web Key Set, the newest first."""
        return {"keys": [key.public for key in self._keys]}

    def _signing_key(self) -> _Key:
        """Return the newest key that has been published for long enough, else the oldest."""
        settled_before = self._wall_clock() - PUBLISH_AHEAD_SECONDS
        settled = (key for key in self._keys if key.made_at <= settled_before)
        return next(settled, self._keys[-1])


def _make_key(folder: Path) -> Path:
    """Write a new key; a crash on the way leaves none, and a power cut afterwards keeps it."""
    content = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / KEY_NAME
    write_durable(path, content)
    return path


def _read_key(path: Path) -> _Key:
    try:
        path.chmod(0o600)  # as it may not be after a restored backup
        private = serialization.load_pem_private_key(path.read_bytes(), None)
        made_at = path.stat().st_mtime
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path} cannot be read as a key: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is a key, but not of Ed25519")
    return _Key(private, made_at)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
