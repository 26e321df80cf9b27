"""`flux2-serve` with faults from outside: the command line is passed on, LAUNCHER_FAULTS is JSON.

    first_respawn_seconds   the first pause between two runners
    fsync_errors            how many calls of os.fsync fail with EIO, from the first on
    commit_errors           how many commits fail with a disk error, once FILE exists
    faults_from             the FILE that switches the failing on
    clock_file              a file that holds by how many seconds the system's clock is wrong

Nothing of the server is replaced: the faults are in what the standard library gives it.
"""

import errno
import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import server.worker
from server.cli import main

VARIABLE = "LAUNCHER_FAULTS"


class Faults:
    """The faults that are asked for, and how many of each are left."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked
        self._left = {name: int(asked.get(name, 0)) for name in ("fsync_errors", "commit_errors")}

    def install(self) -> None:
        """Wrap what the server will call."""
        seconds = self._asked.get("first_respawn_seconds")
        if seconds is not None:
            server.worker.FIRST_RESPAWN_SECONDS = seconds
        if "clock_file" in self._asked:
            self._install_clock(Path(self._asked["clock_file"]))
        self._install_fsync()
        self._install_commit()

    def _strikes(self, name: str) -> bool:
        switch = self._asked.get("faults_from")
        if not self._left[name] or (switch and not Path(switch).exists()):
            return False
        self._left[name] -= 1
        return True

    def _install_clock(self, path: Path) -> None:
        real = time.time

        def wrong() -> float:
            return real() + (float(path.read_text()) if path.exists() else 0.0)

        time.time = wrong

    def _install_fsync(self) -> None:
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if self._strikes("fsync_errors"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(descriptor)

        os.fsync = fsync  # type: ignore[assignment]

    def _install_commit(self) -> None:
        faults, connect = self, sqlite3.connect

        class Connection(sqlite3.Connection):
            """Refuses commits while faults are left."""

            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                """Run the statement unless it is a commit that shall fail."""
                if sql == "COMMIT" and faults._strikes("commit_errors"):
                    raise sqlite3.OperationalError("disk I/O error")
                return super().execute(sql, *parameters)

        def faulty(*arguments: Any, **options: Any) -> sqlite3.Connection:
            return connect(*arguments, **options, factory=Connection)

        sqlite3.connect = faulty  # type: ignore[assignment]


if __name__ == "__main__":
    Faults(json.loads(os.environ.get(VARIABLE, "{}"))).install()
    sys.exit(main())  # type: ignore[func-returns-value]
