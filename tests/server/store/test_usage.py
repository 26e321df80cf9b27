"""What uploads take, counted in blocks."""

import pytest

from server.store.usage import BLOCK_BYTES, Usage, disk_bytes


@pytest.mark.parametrize(
    ("size_bytes", "blocks"), [(0, 1), (1, 1), (BLOCK_BYTES, 1), (BLOCK_BYTES + 1, 2)]
)
def test_files_take_whole_blocks(size_bytes: int, blocks: int) -> None:
    """An empty file takes one too: a million of them are not for free."""
    assert disk_bytes(size_bytes) == blocks * BLOCK_BYTES


def test_each_owner_is_counted() -> None:
    """What comes and goes adds up, for each owner and for all."""
    usage = Usage()
    usage.load([("a", 1), ("b", BLOCK_BYTES), ("a", BLOCK_BYTES + 1)])
    assert (usage.of("a"), usage.of("b"), usage.of("c")) == (3 * BLOCK_BYTES, BLOCK_BYTES, 0)
    assert usage.total == 4 * BLOCK_BYTES
    usage.add("c", 10)
    usage.remove("a", 3 * BLOCK_BYTES)
    assert (usage.of("a"), usage.of("c"), usage.total) == (0, 10, BLOCK_BYTES + 10)
