"""The key file: what is in it, what is not, and who may change it when."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from server.errors import ConfigurationError
from server.keyfile import (
    ALPHABET,
    SECRET_PREFIX,
    KeyFile,
    KeyLimits,
    digest_of,
    is_well_formed,
    make_secret,
)

LIMITS = KeyLimits(queued_jobs=3, storage_bytes=1024)
CREATE = """
import sys, time
from pathlib import Path
from server.keyfile import KeyFile, KeyLimits
for number in range(10):
    key, _ = KeyFile(Path(sys.argv[1])).create(f"{sys.argv[2]}-{number}", KeyLimits(), time.time())
"""


def test_only_the_hash_is_kept(tmp_path: Path) -> None:
    """What was created is read back with its limits, and the secret is nowhere on the disk."""
    file = KeyFile(tmp_path / "keys")
    assert file.read() == ()
    key, secret = file.create("a friend's app", LIMITS, 1000.0)
    assert KeyFile(tmp_path / "keys").read() == (key,)
    assert (key.name, key.limits, key.created_at) == ("a friend's app", LIMITS, 1000.0)
    assert key.digest == digest_of(secret).hex()
    text = file.path.read_text()
    assert secret not in text
    assert secret.removeprefix(SECRET_PREFIX)[:20] not in text
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.path.parent.iterdir()] == ["api-keys.json"]


def test_a_secret_is_256_random_bits_with_a_checksum() -> None:
    """Each one is different, and no change of one character or cut goes unnoticed."""
    secrets = {make_secret() for _ in range(200)}
    assert len(secrets) == 200
    assert all(is_well_formed(secret) for secret in secrets)
    assert {len(secret) for secret in secrets} == {len(SECRET_PREFIX) + 43 + 6}
    secret = secrets.pop()
    for index in range(len(secret)):
        for character in ALPHABET:
            changed = secret[:index] + character + secret[index + 1 :]
            assert is_well_formed(changed) == (changed == secret)
    assert not any(is_well_formed(secret[:length]) for length in range(len(secret)))
    assert not is_well_formed(secret + "0")


def test_a_revoked_key_stays_listed(tmp_path: Path) -> None:
    """The time of the first call counts, other keys are untouched, unknown ids are an error."""
    file = KeyFile(tmp_path)
    first, _ = file.create("first", KeyLimits(), 1.0)
    second, _ = file.create("second", KeyLimits(), 2.0)
    assert file.revoke(first.id, 3.0).revoked_at == 3.0
    assert file.revoke(first.id, 4.0).revoked_at == 3.0
    assert file.read() == (first.model_copy(update={"revoked_at": 3.0}), second)
    with pytest.raises(ConfigurationError, match="no key with the id"):
        file.revoke("nobody", 5.0)


def test_creations_at_once_lose_no_key(tmp_path: Path) -> None:
    """Three processes create ten keys each into one file, and a reader never sees half of it."""
    file = KeyFile(tmp_path)
    names = "abc"
    processes = [
        subprocess.Popen([sys.executable, "-c", CREATE, str(tmp_path), name]) for name in names
    ]
    while any(process.poll() is None for process in processes):
        file.read()
    assert [process.returncode for process in processes] == [0, 0, 0]
    wanted = {f"{name}-{number}" for name in names for number in range(10)}
    assert {key.name for key in file.read()} == wanted
    assert len({key.id for key in file.read()}) == 30


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 2, "keys": []}',
        '{"version": 1, "keys": [{"id": "x"}]}',
        '{"version": 1, "keys": [], "more": 1}',
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    """Neither reading nor creating goes on as if there were no keys."""
    file = KeyFile(tmp_path)
    file.path.write_text(text)
    for change in (file.read, lambda: file.create("new", KeyLimits(), 1.0)):
        with pytest.raises(ConfigurationError, match="left as it is"):
            change()
    assert file.path.read_text() == text


def test_an_id_twice_is_damage(tmp_path: Path) -> None:
    """Two keys with one id would be one owner."""
    file = KeyFile(tmp_path)
    file.create("one", KeyLimits(), 1.0)
    content = json.loads(file.path.read_text())
    content["keys"] *= 2
    file.path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="same id"):
        file.read()


@pytest.mark.parametrize("name", ["a\nb", "tab\t", "x" * 101])
def test_a_name_fits_into_a_line(tmp_path: Path, name: str) -> None:
    """A name that would break the list is refused before anything is written."""
    with pytest.raises(ConfigurationError):
        KeyFile(tmp_path / "keys").create(name, KeyLimits(), 1.0)
    assert not (tmp_path / "keys").exists()
