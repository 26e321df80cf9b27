"""Quotas: for a key, for all, and not to be passed by several at once."""

import pytest

from server.errors import RequestError
from server.keys import Caller, KeyLimits
from server.quota import Quota
from server.settings import Settings
from server.store.usage import BLOCK_BYTES, Usage
from tests.server.conftest import MakeSettings

ANN = Caller(owner="ann", limits=KeyLimits(storage_bytes=2 * BLOCK_BYTES))
BOB = Caller(owner="bob")


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    """Return settings with room for three blocks of uploads."""
    return make_settings(upload_quota_bytes=3 * BLOCK_BYTES)


def test_a_charge_grows_with_the_file_and_can_be_given_back(settings: Settings) -> None:
    """Each block is charged for once."""
    usage = Usage()
    charge = Quota(settings, usage).open(BOB)
    for size_bytes in (0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES):
        charge.grow(size_bytes)
    assert usage.of("bob") == 2 * BLOCK_BYTES
    charge.release()
    charge.release()
    assert usage.total == 0


@pytest.mark.parametrize(
    ("caller", "blocks", "text"), [(ANN, 2, "The key's storage"), (BOB, 3, "The server's storage")]
)
def test_the_quota_itself_fits_and_a_byte_more_does_not(
    settings: Settings, caller: Caller, blocks: int, text: str
) -> None:
    """The refusal is typed and changes nothing."""
    usage = Usage()
    charge = Quota(settings, usage).open(caller)
    charge.grow(blocks * BLOCK_BYTES)
    with pytest.raises(RequestError, match=text) as refused:
        charge.grow(blocks * BLOCK_BYTES + 1)
    assert (refused.value.status, refused.value.error_type) == (403, "storage_quota_exceeded")
    assert usage.total == blocks * BLOCK_BYTES


def test_files_under_way_count_together(settings: Settings) -> None:
    """Two that fit alone cannot pass the quota together, of one key or of all."""
    usage = Usage()
    quota = Quota(settings, usage)
    first, second, other = quota.open(ANN), quota.open(ANN), quota.open(BOB)
    first.grow(BLOCK_BYTES)
    second.grow(BLOCK_BYTES)
    with pytest.raises(RequestError, match="key's"):
        second.grow(BLOCK_BYTES + 1)
    other.grow(BLOCK_BYTES)
    with pytest.raises(RequestError, match="server's"):
        other.grow(BLOCK_BYTES + 1)
    first.release()
    second.grow(2 * BLOCK_BYTES)
