"""Counts what a server asks of database and disk, and ends it at the n-th call.

Both the moment before a call and the one after it count: between a commit and the answer that
tells of it there is no other call.
"""

import io
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE_CALLS = ("open", "rename", "replace", "unlink", "mkdir", "rmdir", "fsync")


class CountedCalls:
    """Wraps the standard library's calls; those for paths outside the folder do not count.

    Reads by the store's reading thread do not count either: they change nothing, and a caller
    who polls makes any number of them.
    """

    def __init__(self, folder: Path, kill_at: int, tell: Callable[[str], None]) -> None:
        self._folder = str(folder)
        self._kill_at = kill_at
        self._tell = tell
        self._lock = threading.Lock()
        self.count = 0

    def install(self) -> None:
        """Wrap the calls, for the rest of this process's life."""
        for name in FILE_CALLS:
            setattr(os, name, self._wrap(name, getattr(os, name)))
        io.open = self._wrap("write", io.open)
        calls, connect = self, sqlite3.connect

        class Connection(sqlite3.Connection):
            """Counts what it executes."""

            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                """Execute between two ticks."""
                name, run = _first_words(sql), super().execute
                cursor: sqlite3.Cursor = calls.between_ticks(name, run, sql, *parameters)
                return cursor

            def executescript(self, sql: str) -> sqlite3.Cursor:
                """Execute between two ticks."""
                run = super().executescript
                cursor: sqlite3.Cursor = calls.between_ticks("script", run, sql)
                return cursor

            def close(self) -> None:
                """Close between two ticks: the last connection merges the log."""
                calls.between_ticks("close", super().close)

        def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = self.between_ticks(
                "connect", connect, *arguments, **{**options, "factory": Connection}
            )
            return connection

        sqlite3.connect = counted  # type: ignore[assignment]

    def between_ticks(self, name: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Make the call with a tick before and one after it."""
        self._tick(f"before {name}")
        result = call(*args, **options)
        self._tick(f"after {name}")
        return result

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            if not self._counts(args, options):
                return call(*args, **options)
            return self.between_ticks(name, call, *args, **options)

        return wrapped

    def _counts(self, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
        target = args[0] if args else None
        if isinstance(target, int) or options.get("dir_fd") is not None:
            return True
        return str(target).startswith(self._folder)

    def _tick(self, name: str) -> None:
        if threading.current_thread().name.startswith("store-reader"):
            return
        with self._lock:
            self.count += 1
            if self.count == self._kill_at:
                self._tell(name)
                os.kill(os.getpid(), signal.SIGKILL)


def _first_words(sql: str) -> str:
    lines = [line for line in sql.splitlines() if not line.startswith("--")]
    return " ".join(" ".join(lines).split()[:3])
