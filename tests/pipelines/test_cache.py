"""What is remembered comes back unchanged, and never takes more than it may."""

import pytest
import torch

from pipelines.cache import TensorCache

KIB = torch.arange(256, dtype=torch.float32)
"""A tensor of 1,024 bytes."""


def make_cache(limit_bytes: int) -> TensorCache:
    """Make a cache on the CPU."""
    return TensorCache(limit_bytes, torch.device("cpu"))


def never() -> torch.Tensor:
    """Fail the test: what is asked for should have been remembered."""
    raise AssertionError("made again")


def test_what_was_made_is_not_made_again() -> None:
    """The second time the same tensor comes back, by equal keys of any kind."""
    cache = make_cache(4096)
    for key in ("prompt", ("system", "prompt"), b"\x00hash"):
        made = cache.get(key, KIB.clone)
        assert cache.get(key, never) is made
    assert cache.bytes == 3 * KIB.nbytes


def test_the_least_recently_used_is_forgotten_first() -> None:
    """Within the bytes allowed; what was asked for lately stays."""
    cache = make_cache(3 * KIB.nbytes)
    for key in "abc":
        cache.get(key, KIB.clone)
    cache.get("a", never)
    cache.get("d", KIB.clone)
    assert cache.bytes == 3 * KIB.nbytes
    for key in "acd":
        cache.get(key, never)
    with pytest.raises(AssertionError, match="made again"):
        cache.get("b", never)


def test_what_is_larger_than_the_cache_is_handed_out_and_not_kept() -> None:
    """One giant leaves what is kept alone; a cache of no bytes keeps nothing."""
    cache = make_cache(2 * KIB.nbytes)
    small = cache.get("small", KIB.clone)
    giant = cache.get("giant", lambda: torch.ones(4096))
    assert giant.shape == (4096,)
    assert cache.get("small", never) is small
    assert cache.bytes == KIB.nbytes
    nothing = make_cache(0)
    nothing.get("a", KIB.clone)
    assert nothing.bytes == 0


def test_what_cannot_be_made_is_not_remembered() -> None:
    """The error reaches the caller, and the next call tries again."""
    cache = make_cache(4096)

    def fail() -> torch.Tensor:
        raise ValueError("a picture outside the limits")

    with pytest.raises(ValueError, match="outside"):
        cache.get("a", fail)
    assert torch.equal(cache.get("a", KIB.clone), KIB)
