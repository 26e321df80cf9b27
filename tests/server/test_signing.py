"""Signatures that fal's receivers accept, keys that survive, and a change of keys."""

import base64
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.errors import ConfigurationError
from server.signing import KEY_NAME, PUBLISH_AHEAD_SECONDS, Signer
from tests.server.receivers import TIMESTAMP_LEEWAY_SECONDS, is_from_fal

NOW = 1_900_000_000
BODY = b'{"request_id": "5057fca7", "status": "OK", "payload": {"seed": 1}}'
ID = "5057fca7-2eb3-468f-b95d-cefe92b0b9d4"
DAY = 24 * 3600


def signed_headers(signer: Signer, timestamp: str = str(NOW), body: bytes = BODY) -> dict[str, str]:
    """Return the headers of a webhook."""
    return {
        "x-fal-webhook-request-id": ID,
        "x-fal-webhook-user-id": "local",
        "x-fal-webhook-timestamp": timestamp,
        "x-fal-webhook-signature": signer.sign(ID, "local", timestamp, body),
    }


def flips(data: bytes) -> list[bytes]:
    """Return `data` with each bit of each byte turned over, one at a time."""
    return [
        data[:index] + bytes([data[index] ^ (1 << bit)]) + data[index + 1 :]
        for index in range(len(data))
        for bit in range(8)
    ]


def write_key(path: Path, made_at: float) -> None:
    """Write a key as `openssl genpkey -algorithm ed25519` does."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pem)
    os.utime(path, (made_at, made_at))


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    """Return a signer with its first key."""
    signer = Signer(tmp_path / "keys")
    signer.load()
    return signer


def test_a_receiver_accepts_it(signer: Signer) -> None:
    """An independent implementation of fal's documented steps finds it good."""
    assert is_from_fal(signer.jwks(), signed_headers(signer), BODY, NOW)


@pytest.mark.parametrize("field", ["request-id", "user-id", "timestamp", "signature"])
def test_every_changed_bit_of_a_header_is_rejected(signer: Signer, field: str) -> None:
    """All of the signed headers are covered, and the signature itself."""
    headers = signed_headers(signer)
    name = f"x-fal-webhook-{field}"
    changed = [flip.decode("latin-1") for flip in flips(headers[name].encode())]
    # Hexadecimal digits mean the same in capitals: that one flip is no change.
    same = [text for text in changed if field == "signature" and text.lower() == headers[name]]
    for text in changed:
        good = is_from_fal(signer.jwks(), {**headers, name: text}, BODY, NOW)
        assert good == (text in same), text


def test_every_changed_bit_of_the_body_is_rejected(signer: Signer) -> None:
    """The body is covered by its hash, to the last byte, and to its length."""
    headers = signed_headers(signer)
    for body in [*flips(BODY), b"", BODY + b" ", BODY[:-1]]:
        assert not is_from_fal(signer.jwks(), headers, body, NOW), body


@pytest.mark.parametrize(
    ("age", "good"),
    [(0, True), (300, True), (301, False), (-300, True), (-301, False)],
)
def test_old_and_early_timestamps_are_rejected(signer: Signer, age: int, good: bool) -> None:
    """A receiver allows five minutes either way, and then a replay is one."""
    assert TIMESTAMP_LEEWAY_SECONDS == 300
    headers = signed_headers(signer, str(NOW - age))
    assert is_from_fal(signer.jwks(), headers, BODY, NOW) is good


def test_another_box_s_key_is_rejected(signer: Signer, tmp_path: Path) -> None:
    """A signature is good for the key set of the box that made it."""
    other = Signer(tmp_path / "other")
    other.load()
    assert not is_from_fal(other.jwks(), signed_headers(signer), BODY, NOW)


def test_the_key_set_has_what_readers_want(signer: Signer) -> None:
    """RFC 8037's members, base64url without padding (browsers refuse it), no private part."""
    (key,) = signer.jwks()["keys"]
    assert set(key) == {"kty", "crv", "x", "kid", "use"}
    assert (key["kty"], key["crv"], key["use"]) == ("OKP", "Ed25519", "sig")
    assert len(base64.urlsafe_b64decode(key["x"] + "=")) == 32
    assert len(key["x"]) == len(key["kid"]) == 43


def test_the_key_stays_and_is_nobody_else_s_to_read(tmp_path: Path) -> None:
    """A restart signs with the same key, also after a backup was restored with open modes."""
    folder = tmp_path / "keys"
    before = os.umask(0)
    try:
        first = Signer(folder)
        first.load()
    finally:
        os.umask(before)
    path = folder / KEY_NAME
    assert list(folder.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    second = Signer(folder)
    second.load()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert first.jwks() == second.jwks()
    assert is_from_fal(first.jwks(), signed_headers(second), BODY, NOW)


def test_a_new_key_is_published_before_it_signs(tmp_path: Path) -> None:
    """Receivers keep the key set for a day, so that at no moment do they lack the key in use."""
    clock = [NOW - 10.0 * DAY]
    write_key(tmp_path / KEY_NAME, clock[0] - 365 * DAY)
    only_old = Signer(tmp_path, lambda: clock[0])
    only_old.load()
    write_key(tmp_path / "second.pem", clock[0])
    both = Signer(tmp_path, lambda: clock[0])
    both.load()
    (tmp_path / KEY_NAME).unlink()
    only_new = Signer(tmp_path, lambda: clock[0])
    only_new.load()
    assert both.jwks()["keys"] == [*only_new.jwks()["keys"], *only_old.jwks()["keys"]]

    clock[0] += PUBLISH_AHEAD_SECONDS - 1
    assert is_from_fal(only_old.jwks(), signed_headers(both), BODY, NOW)
    clock[0] += 1
    assert is_from_fal(only_new.jwks(), signed_headers(both), BODY, NOW)
    assert is_from_fal(both.jwks(), signed_headers(both), BODY, NOW)


def write_text(path: Path) -> None:
    """Write what is no key."""
    path.write_text("not a key")


def write_curve_key(path: Path) -> None:
    """Write a key of another kind."""
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(write_text, id="text"),
        pytest.param(write_curve_key, id="another curve"),
        pytest.param(Path.mkdir, id="a folder"),
    ],
)
def test_a_broken_key_stops_the_start(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Silently making a new one would have every receiver reject everything."""
    write(tmp_path / KEY_NAME)
    with pytest.raises(ConfigurationError, match=KEY_NAME):
        Signer(tmp_path).load()
