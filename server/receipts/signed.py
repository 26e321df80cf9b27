"""A receipt as a signed file: what it looks like, byte for byte, and whether it is authentic.

The text is the one that `render` gives and no other: a file with another blank in it is another
file, and not authentic. Ed25519 (RFC 8032) over the receipt in that form.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from server.durable import make_private_folder, write_durable
from server.errors import ConfigurationError

FORMAT = "flux2-serve receipt 1"
PRIVATE_NAME = "receipts-ed25519.pem"
PUBLIC_NAME = "receipts-ed25519.pub"


class NotAuthenticError(Exception):
    """The file is not a receipt that one of the keys has signed; the message says why."""


def sign_receipt(receipt: dict[str, Any], key: Ed25519PrivateKey) -> str:
    """Return the receipt as the text of a signed file."""
    content = {**receipt, "format": FORMAT}
    signature = {
        "algorithm": "Ed25519",
        "key": key_id(key.public_key()),
        "value": key.sign(_message(content)).hex(),
    }
    return render({"receipt": content, "signature": signature})


def verify_receipt(text: bytes, keys: Iterable[Ed25519PublicKey]) -> dict[str, Any]:
    """Return the receipt in a signed file. Raises `NotAuthenticError`."""
    try:
        signed = json.loads(text)
        receipt, signature = signed["receipt"], signed["signature"]
        value, name = bytes.fromhex(signature["value"]), signature["key"]
        if render(signed).encode("utf-8") != text or receipt["format"] != FORMAT:
            raise NotAuthenticError("it is not written as a receipt is")
        expected = {"algorithm": "Ed25519", "key": name, "value": value.hex()}
        if signature != expected or set(signed) != {"receipt", "signature"}:
            raise NotAuthenticError("its signature is not written as a receipt's is")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NotAuthenticError("it is no receipt") from error
    for key in keys:
        if key_id(key) == name:
            try:
                key.verify(value, _message(receipt))
            except InvalidSignature as error:
                raise NotAuthenticError("its content is not what was signed") from error
            return dict(receipt)
    raise NotAuthenticError(f"the key {name} is not known here")


def render(value: Any) -> str:
    """Return the one text of a value: sorted, indented, ASCII."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def load_key(folder: Path) -> Ed25519PrivateKey:
    """Read the key that receipts are signed with, or make it, its public half beside it.

    Raises `ConfigurationError` for a file that is not such a key.
    """
    path = folder / PRIVATE_NAME
    if not path.exists():
        make_private_folder(folder)
        made = Ed25519PrivateKey.generate()
        write_durable(
            path,
            made.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )
        public = made.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        write_durable(folder / PUBLIC_NAME, public, 0o644)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path} cannot be read as a key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is a key, but not of Ed25519")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key. Raises `ConfigurationError`."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path} cannot be read as a public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(f"{path} is a key, but not of Ed25519")
    return key


def known_keys(folder: Path) -> list[Ed25519PublicKey]:
    """Return the public keys of a folder: its own, and those that were put there."""
    return [load_public_key(path) for path in sorted(folder.glob("*.pub"))]


def key_id(key: Ed25519PublicKey) -> str:
    """Return a short name of the key: the beginning of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:32]


def _message(receipt: dict[str, Any]) -> bytes:
    return render(receipt).encode("utf-8")
