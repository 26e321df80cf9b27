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


def children_of(pid: int) -> dict[str, int]:
    """Return the children of a process by the Python module that each runs."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    words = {child: Path(f"/proc/{child}/cmdline").read_text().split("\0") for child in children}
    return {line[line.index("-m") + 1]: int(child) for child, line in words.items() if "-m" in line}
