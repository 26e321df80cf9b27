"""Large blocks leave the process with their last use."""

import subprocess
import sys

SCRIPT = """
import threading
from server.memory import give_large_blocks_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if {told}:
    give_large_blocks_back()
blocks = [[bytes(20_000_000) for _ in range(4)], []]
# What is small and lives on, above what is freed: it keeps a heap from shrinking.
del blocks[0][:]
before = resident()
kept = []
def work():
    for _ in range(8):
        large = b"x" * 20_000_000
        kept.append(b"y" * 100_000)
        del large
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(resident() - before)
"""


def grown_bytes(*, told: bool) -> int:
    """Return what a process keeps that handled large blocks in several threads."""
    command = [sys.executable, "-c", SCRIPT.format(told=told)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_no_thread_keeps_room_for_the_next_large_block() -> None:
    """Of 640 MB that passed through four threads, no more than the small blocks stay."""
    assert grown_bytes(told=True) < 10_000_000
    assert grown_bytes(told=False) > 20_000_000
