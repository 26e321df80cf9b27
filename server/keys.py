"""Who calls: the owner of jobs and files, with what that key may use."""

from dataclasses import dataclass

HOUSE = "local"
"""The owner of what is made without a key or with `FLUX2_API_KEY`: the box's own account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What one key may use; None means that only the server's own limits hold."""

    queued_jobs: int | None = None
    requests_per_minute: int | None = None
    storage_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent a request. `owner` is the id of the key, never its secret."""

    owner: str = HOUSE
    limits: KeyLimits = KeyLimits()
