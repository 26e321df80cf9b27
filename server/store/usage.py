"""What uploads take of the disk, by owner, in memory.

Adding up rows would cost more the more there are, and every chunk of an upload asks. Rebuilt from
the database at start; what is under way is added as it comes, so that no two uploads can pass a
quota together.
"""

import threading
from collections import Counter
from collections.abc import Iterable

BLOCK_BYTES = 4096


def disk_bytes(size_bytes: int) -> int:
    """Return what a file takes: whole blocks, and one for an empty file, as on the disk."""
    return max(1, -(-size_bytes // BLOCK_BYTES)) * BLOCK_BYTES


class Usage:
    """Bytes on disk of each owner's uploads. Safe to change from the database's thread too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_owner: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """What all uploads together take."""
        with self._lock:
            return self._by_owner.total()

    def of(self, owner: str) -> int:
        """Return what one owner's uploads take."""
        with self._lock:
            return self._by_owner[owner]

    def load(self, files: Iterable[tuple[str, int]]) -> None:
        """Begin with the owner and size of each stored upload."""
        for owner, size_bytes in files:
            self.add(owner, disk_bytes(size_bytes))

    def add(self, owner: str, on_disk_bytes: int) -> None:
        """Note that so much came."""
        with self._lock:
            self._by_owner[owner] += on_disk_bytes

    def remove(self, owner: str, on_disk_bytes: int) -> None:
        """Note that so much went."""
        with self._lock:
            self._by_owner[owner] -= on_disk_bytes
            if not self._by_owner[owner]:
                del self._by_owner[owner]
