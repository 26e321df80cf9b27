"""Who calls: the owner of jobs and files, what that key may use, and how a key is recognised."""

import hmac
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from server.errors import ConfigurationError
from server.keyfile import KeyFile, KeyLimits, StoredKey, digest_of, is_well_formed

__all__ = ["HOUSE", "Caller", "KeyLimits", "Keyring"]

log = structlog.get_logger(__name__)

HOUSE = "local"
"""The owner of what is made without a key or with `FLUX2_API_KEY`: the box's own account."""

LOOK_SECONDS = 1.0
"""How late a change of the key file may be noticed."""

NO_DIGEST = bytes(32)
"""Compared with when the id is unknown, so that both cases take the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent a request. `owner` is the id of the key, never its secret."""

    owner: str = HOUSE
    limits: KeyLimits = field(default_factory=KeyLimits)


class Keyring:
    """The keys that hold now: those of the file, and one from the settings without limits.

    The file may change at any time. What cannot be read changes nothing: the keys read last go
    on holding, so that no damage ever opens the door. `monotonic` gives seconds.
    """

    def __init__(
        self,
        file: KeyFile,
        api_key: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the file. Raises `ConfigurationError` when it cannot be used."""
        self._file = file
        self._house_digest = digest_of(api_key) if api_key else None
        self._monotonic = monotonic
        self._problem: str | None = None
        self._mark = file.mark()
        self._take(file.read())
        self._is_closed = bool(api_key or self._keys)
        self._looked_at = monotonic()

    @property
    def house_digest(self) -> bytes:
        """What tells one key of the settings from another; empty without one."""
        return self._house_digest or b""

    @property
    def has_keys(self) -> bool:
        """True once there was any key: from then on callers need one, even if all are revoked."""
        self._is_closed = self._is_closed or bool(self._current())
        return self._is_closed

    @property
    def problem(self) -> str | None:
        """Say why the key file cannot be read since its last change, or None."""
        self._current()
        return self._problem

    def verify(self, credential: str) -> Caller | None:
        """Return whose `id:secret` this is, or None. Takes the same time whatever is wrong."""
        key_id, _, secret = credential.partition(":")
        key = self._current().get(key_id)
        is_key = hmac.compare_digest(digest_of(secret), self._digests.get(key_id, NO_DIGEST))
        is_house = hmac.compare_digest(digest_of(credential), self._house_digest or NO_DIGEST)
        if is_house and self._house_digest:
            return Caller()
        return _caller(key) if is_key and key else None

    def get(self, owner: str) -> Caller | None:
        """Return the caller behind an owner's id; None when that key is unknown or revoked."""
        if owner == HOUSE:
            return Caller() if self._house_digest or not self.has_keys else None
        key = self._current().get(owner)
        return _caller(key) if key else None

    def explain(self, credential: str) -> str:
        """Say for the log what is wrong with a refused credential, without repeating it."""
        key_id, _, secret = credential.partition(":")
        key = self._current().get(key_id)
        if key is None:
            return "unknown key id"
        if key.revoked_at is not None:
            return f"key {key.id} is revoked"
        fault = "wrong" if is_well_formed(secret) else "mistyped or cut"
        return f"the secret of key {key.id} is {fault}"

    def _take(self, keys: Iterable[StoredKey]) -> None:
        self._keys = {key.id: key for key in keys}
        self._digests = {key.id: bytes.fromhex(key.digest) for key in self._keys.values()}

    def _current(self) -> dict[str, StoredKey]:
        """Return the keys, read again when the file has changed."""
        now = self._monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            try:
                self._read_changes()
            except ConfigurationError as error:
                if self._problem is None:
                    log.error("the key file cannot be used, the last keys hold", reason=str(error))
                self._problem = str(error)
        return self._keys

    def _read_changes(self) -> None:
        mark = self._file.mark()
        if mark == self._mark and self._problem is None:
            return
        if mark is None and self._keys:
            raise ConfigurationError(f"{self._file.path} is gone")
        self._take(self._file.read())
        self._mark, self._problem = mark, None
        log.info("keys read", keys=len(self._keys))


def _caller(key: StoredKey) -> Caller | None:
    return None if key.revoked_at is not None else Caller(owner=key.id, limits=key.limits)
