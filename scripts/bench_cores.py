"""Which process runs on which core. Linux only, as the server is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def choose_cores() -> tuple[int, int]:
    """Return the gateway's core and the runner's: the same one where there is but one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[1 % len(cores)]


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Stay on this core, with every process that is started meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def move(pid: int, core: int) -> None:
    """Move a running process, all of its threads, to this core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def child_of(pid: int) -> int:
    """Return the process id of the only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(child)
