"""How much uploads may take: the whole server's quota, and each key's."""

from server.errors import RequestError
from server.keys import Caller
from server.settings import Settings
from server.store.usage import Usage, disk_bytes


class Charge:
    """What one file on its way in takes; it grows with the file, and `release` gives it back."""

    def __init__(self, usage: Usage, caller: Caller, total_limit: int) -> None:
        self._usage = usage
        self._caller = caller
        self._total_limit = total_limit
        self._on_disk_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """Charge for a file of this size, beforehand.

        Raises `RequestError` 403 `storage_quota_exceeded`; the charge is as it was then.
        """
        more = disk_bytes(size_bytes) - self._on_disk_bytes
        if more <= 0:
            return
        owner, limit = self._caller.owner, self._caller.limits.storage_bytes
        if limit is not None and self._usage.of(owner) + more > limit:
            raise _refusal("The key's storage is full; it takes", limit)
        if self._usage.total + more > self._total_limit:
            raise _refusal("The server's storage for uploads is full; it takes", self._total_limit)
        self._usage.add(owner, more)
        self._on_disk_bytes += more

    def release(self) -> None:
        """Give everything back."""
        self._usage.remove(self._caller.owner, self._on_disk_bytes)
        self._on_disk_bytes = 0


class Quota:
    """Opens charges against what is stored already."""

    def __init__(self, settings: Settings, usage: Usage) -> None:
        self._usage = usage
        self._total_limit = settings.upload_quota_bytes

    def open(self, caller: Caller) -> Charge:
        """Return a charge for a new file of the caller's, of nothing yet."""
        return Charge(self._usage, caller, self._total_limit)


def _refusal(text: str, limit: int) -> RequestError:
    return RequestError(403, f"{text} {limit} bytes", "storage_quota_exceeded")
