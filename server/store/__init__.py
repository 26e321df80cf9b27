"""The queue on disk: the only SQL of the project."""

from server.store.store import Store, StoreLockedError

__all__ = ["Store", "StoreLockedError"]
