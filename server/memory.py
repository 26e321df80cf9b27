"""How the gateway gives memory back."""

import ctypes

_M_MMAP_THRESHOLD = -3
"""From glibc's `malloc.h`; see mallopt(3)."""

OWN_MAPPING_BYTES = 256 * 1024
"""Blocks from this size on are mapped one by one, and are the system's again once freed."""


def give_large_blocks_back() -> None:
    """Make malloc return every large block as soon as it is freed.

    Left alone, glibc raises its threshold to the largest block ever freed, up to 32 MiB. Bodies
    of that size then come out of the heap of whichever thread handles them, and every one of
    those heaps keeps the room for the next one. Does nothing where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
