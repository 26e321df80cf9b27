"""What this machine has: the device that would run the model, as `pipelines.memory` wants it."""

import os
import platform
from pathlib import Path

from pipelines.memory import Card

MEMORY_INFO = Path("/proc/meminfo")
"""Linux's account of main memory (https://docs.kernel.org/filesystems/proc.html#meminfo)."""

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""A container's own limits (https://docs.kernel.org/admin-guide/cgroup-v2.html)."""


def probe_card(device: str = "auto") -> Card:
    """Ask torch what `device` is: `auto`, `cpu`, `cuda` or `cuda:N`.

    Creates the CUDA context, so that free memory is what remains for tensors. Raises
    `RuntimeError`, torch's own, for a device that is not there or does not answer.
    """
    # Only now: whoever plans for a card described by hand needs no torch.
    import torch  # noqa: PLC0415

    host_bytes = host_free_bytes()
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return Card(
            name=platform.machine() or "cpu",
            kind="cpu",
            capability=None,
            total_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            free_bytes=host_bytes,
            host_free_bytes=host_bytes,
        )
    chosen = torch.device("cuda" if device == "auto" else device)
    free_bytes, total_bytes = torch.cuda.mem_get_info(chosen)
    return Card(
        name=torch.cuda.get_device_name(chosen),
        kind="cuda",
        capability=torch.cuda.get_device_capability(chosen),
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        host_free_bytes=host_bytes,
    )


def host_free_bytes(memory_info: Path = MEMORY_INFO, control_group: Path = CONTROL_GROUP) -> int:
    """Return the main memory that this process may still take, within its container's limit."""
    for line in memory_info.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            free_bytes = int(value.split()[0]) * 1024
            break
    else:
        raise RuntimeError(f"{memory_info} does not say what is available")
    try:
        limit = (control_group / "memory.max").read_text(encoding="ascii").strip()
        used = (control_group / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return free_bytes  # no container, or one of the older kind
    # What is used includes files that are only cached, so this is on the careful side.
    return free_bytes if limit == "max" else max(0, min(free_bytes, int(limit) - int(used)))
