"""The file of API keys: each one known by the hash of a secret that was shown once.

A plain file beside the database, so that `flux2-serve keys` works while the server runs: the
database has only one writer. A hash without salt or stretching will do for 256 random bits.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import string
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.durable import make_private_folder, write_durable
from server.errors import ConfigurationError

FILE_NAME = "api-keys.json"

SECRET_PREFIX = "f2s_"  # noqa: S105  (the same for all: it lets scanners of code find leaks)
SECRET_BYTES = 32
RANDOM_CHARACTERS = 43
"""256 bits in base 62."""
CHECKSUM_CHARACTERS = 6
"""32 bits in base 62."""

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase

SafetyRule = Literal["required", "optional", "off"]
"""Whether images must pass the safety checker: always, if the request says so, or never."""

Count = Annotated[int, Field(gt=0)]
Mark = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What one key may use; None means that only the server's own limits hold."""

    queued_jobs: Count | None = None
    requests_per_minute: Count | None = None
    storage_bytes: Count | None = None
    safety: SafetyRule | None = None


class StoredKey(BaseModel):
    """One key on record. `id` is public and owns jobs and files; times are seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f-]{16,64}$")
    name: str = Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: float
    limits: KeyLimits = KeyLimits()
    revoked_at: float | None = None


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    keys: tuple[StoredKey, ...] = ()

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        if len({key.id for key in self.keys}) != len(self.keys):
            raise ValueError("two keys have the same id")
        return self


class KeyFile:
    """The keys of one data folder, changed by one process at a time and read by any."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def mark(self) -> Mark | None:
        """Return what is different after each change, None while there is no file."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(error.strerror) from error
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> tuple[StoredKey, ...]:
        """Return all keys, revoked ones too; none when there is no file.

        Raises `ConfigurationError` for a file that cannot be read or is damaged.
        """
        try:
            return _Content.model_validate_json(self.path.read_bytes()).keys
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._unreadable(error.strerror) from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise self._unreadable(first["msg"]) from None

    def create(self, name: str, limits: KeyLimits, now: float) -> tuple[StoredKey, str]:
        """Store a new key, and return it with its secret, which is nowhere else.

        Raises `ConfigurationError` when the file cannot be read or written, or the name cannot
        stand in it.
        """
        secret = make_secret()
        try:
            key = StoredKey(
                id=str(uuid.uuid4()),
                name=name,
                digest=digest_of(secret).hex(),
                created_at=now,
                limits=limits,
            )
        except ValidationError as error:
            raise ConfigurationError(f"the key cannot be made: {error}") from None
        with self._changing() as keys:
            keys.append(key)
        return key, secret

    def revoke(self, key_id: str, now: float) -> StoredKey:
        """Mark a key as revoked from now on; it stays listed. Once more changes nothing.

        Raises `ConfigurationError` for an id that is not in the file.
        """
        with self._changing() as keys:
            for index, key in enumerate(keys):
                if key.id == key_id:
                    if key.revoked_at is None:
                        keys[index] = key.model_copy(update={"revoked_at": now})
                    return keys[index]
        raise ConfigurationError(f"{self.path} has no key with the id {key_id!r}")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[StoredKey]]:
        """Give the keys to change, with other processes kept out until they are on disk."""
        folder = self.path.parent
        try:
            make_private_folder(folder)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigurationError(f"{folder}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            before = self.read()
            keys = list(before)
            yield keys
            if tuple(keys) != before:
                content = _Content(keys=tuple(keys)).model_dump_json(indent=2)
                write_durable(self.path, content.encode("utf-8") + b"\n")
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be written: {error}") from error
        finally:
            os.close(descriptor)

    def _unreadable(self, reason: str | None) -> ConfigurationError:
        return ConfigurationError(
            f"{self.path} cannot be used: {reason}. It was left as it is; restore it from a "
            "backup, or move it away and create new keys."
        )


def make_secret() -> str:
    """Return a new secret: a prefix, 256 random bits, and a checksum of both."""
    random = _base62(int.from_bytes(secrets.token_bytes(SECRET_BYTES)), RANDOM_CHARACTERS)
    return SECRET_PREFIX + random + _checksum(SECRET_PREFIX + random)


def is_well_formed(secret: str) -> bool:
    """Say whether this can be one of our secrets at all, unlike one that was mistyped or cut."""
    body, checksum = secret[:-CHECKSUM_CHARACTERS], secret[-CHECKSUM_CHARACTERS:]
    length = len(SECRET_PREFIX) + RANDOM_CHARACTERS
    return body.startswith(SECRET_PREFIX) and len(body) == length and checksum == _checksum(body)


def digest_of(secret: str) -> bytes:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode("utf-8", "replace")), CHECKSUM_CHARACTERS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
