"""Receipts as files: authentic as they were printed, and in no other form."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ConfigurationError
from server.receipts.signed import (
    PRIVATE_NAME,
    PUBLIC_NAME,
    NotAuthenticError,
    known_keys,
    load_key,
    load_public_key,
    render,
    sign_receipt,
    verify_receipt,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = [KEY.public_key()]

RECEIPT: dict[str, Any] = {
    "request_id": "5057fca7",
    "input": {"prompt": 'Grüße "模型"\n', "guidance_scale": 2.5, "seed": 2**63 - 4},
    "images": [{"sha256": "00ff", "flagged": False}, {}],
    "verdicts": None,
}
TEXT = sign_receipt(RECEIPT, KEY).encode("ascii")

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


def is_authentic(text: bytes) -> bool:
    """Say whether the text is what was signed."""
    try:
        verify_receipt(text, PUBLIC)
    except NotAuthenticError:
        return False
    return True


@given(st.dictionaries(st.text(max_size=9), JSON))
def test_whatever_was_signed_verifies(content: dict[str, Any]) -> None:
    """And gives back what was put in."""
    told = verify_receipt(sign_receipt(content, KEY).encode("ascii"), PUBLIC)
    assert told == {**content, "format": told["format"]}


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 255))
def test_any_changed_byte_does_not_verify(place: int, change: int) -> None:
    """Also one that no JSON parser would notice, or that only the signature's text has."""
    changed = bytes([*TEXT[:place], TEXT[place] ^ change, *TEXT[place + 1 :]])
    assert not is_authentic(changed)


def test_no_changed_bit_verifies() -> None:
    """Each bit of the file, one at a time."""
    assert is_authentic(TEXT)
    for place in range(len(TEXT)):
        for bit in range(8):
            flipped = bytes([*TEXT[:place], TEXT[place] ^ (1 << bit), *TEXT[place + 1 :]])
            assert not is_authentic(flipped)


@given(st.integers(0, len(TEXT)), st.binary(min_size=1, max_size=3))
def test_nothing_can_be_added_or_taken_away(place: int, extra: bytes) -> None:
    """Blanks included."""
    assert not is_authentic(TEXT[:place] + extra + TEXT[place:])
    assert place == len(TEXT) or not is_authentic(TEXT[:place])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: json.dumps(json.loads(text)).encode(),
        lambda text: text.replace(b"\\u00fc", "ü".encode()),
        lambda text: text.replace(b'"flagged": false', b'"flagged": true, "flagged": false'),
        lambda text: text.replace(b"2.5", b"2.50"),
        lambda text: text.upper(),
        lambda _: b"",
        lambda _: b"[]",
        lambda _: b'{"receipt": 1, "signature": {}}',
        lambda _: b'{"receipt":' * 100_000,
    ],
)
def test_other_ways_to_write_it_are_other_files(change: Any) -> None:
    """One receipt is one text; what is none at all is refused as calmly."""
    assert not is_authentic(change(TEXT))


def test_another_key_does_not_verify(tmp_path: Path) -> None:
    """Only those whose public half is known here count."""
    other = load_key(tmp_path)
    with pytest.raises(NotAuthenticError, match="not known here"):
        verify_receipt(sign_receipt(RECEIPT, other).encode("ascii"), PUBLIC)


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    """Its public half lies beside it, to be given to others."""
    folder = tmp_path / "keys" / "receipts"
    text = sign_receipt(RECEIPT, load_key(folder)).encode("ascii")
    assert stat.S_IMODE((folder / PRIVATE_NAME).stat().st_mode) == 0o600
    before = (folder / PRIVATE_NAME).read_bytes()
    load_key(folder)
    assert (folder / PRIVATE_NAME).read_bytes() == before
    verify_receipt(text, known_keys(folder))
    verify_receipt(text, [load_public_key(folder / PUBLIC_NAME)])


def test_files_that_are_no_keys_are_named(tmp_path: Path) -> None:
    """An operator reads which file is wrong."""
    (tmp_path / PRIVATE_NAME).write_text("none")
    with pytest.raises(ConfigurationError, match=PRIVATE_NAME):
        load_key(tmp_path)
    (tmp_path / PUBLIC_NAME).write_text("none")
    with pytest.raises(ConfigurationError, match=PUBLIC_NAME):
        known_keys(tmp_path)


def test_what_json_cannot_hold_is_not_signed() -> None:
    """No reader of JSON knows NaN."""
    with pytest.raises(ValueError, match="JSON"):
        render(float("nan"))
