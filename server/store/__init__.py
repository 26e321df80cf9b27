"""The queue on disk: the only SQL of the project."""

from server.store.database import StoreCorruptError, StoreLockedError, StoreUnavailableError
from server.store.store import Store

__all__ = ["Store", "StoreCorruptError", "StoreLockedError", "StoreUnavailableError"]
