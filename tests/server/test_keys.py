"""The keyring: who is let in, when a change is noticed, and that no damage opens the door."""

import uuid
from pathlib import Path

import pytest

from server.errors import ConfigurationError
from server.keyfile import KeyFile, KeyLimits, make_secret
from server.keys import HOUSE, Caller, Keyring
from tests.server.test_limiter import Hand

LIMITS = KeyLimits(requests_per_minute=7)


class Ring:
    """A keyring over a file with one key, and a clock that the test moves."""

    def __init__(self, folder: Path, api_key: str | None = None) -> None:
        self.file = KeyFile(folder)
        self.key, self.secret = self.file.create("friend", LIMITS, 1.0)
        self.credential = f"{self.key.id}:{self.secret}"
        self.clock = Hand()
        self.keys = Keyring(self.file, api_key, self.clock)

    def problem(self) -> str | None:
        """Return what is wrong with the file now."""
        return self.keys.problem

    def wait(self) -> None:
        """Let the time pass after which a change is noticed."""
        self.clock.now += 1.0


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    """Return such a ring."""
    return Ring(tmp_path)


def test_the_key_is_known_by_its_secret(ring: Ring) -> None:
    """Who has it is the owner with its limits; no part of it, and nothing near it, will do."""
    caller = Caller(owner=ring.key.id, limits=LIMITS)
    assert ring.keys.verify(ring.credential) == caller
    assert ring.keys.get(ring.key.id) == caller
    other = make_secret()
    for wrong in (
        "",
        ":",
        ring.key.id,
        f"{ring.key.id}:",
        ring.secret,
        f":{ring.secret}",
        f"{ring.key.id}:{other}",
        f"{uuid.uuid4()}:{ring.secret}",
        f"{ring.credential}x",
        ring.credential[:-1],
        ring.credential.swapcase(),
        f"{ring.key.id}:{ring.key.digest}",
        f"{ring.key.id}:\x00",
        f"{HOUSE}:",
        "ä:\udcff",
    ):
        assert ring.keys.verify(wrong) is None, wrong


def test_ten_thousand_wrong_keys(ring: Ring) -> None:
    """None of them is let in: half with the right id, half with the right secret."""
    tries = [f"{ring.key.id}:{make_secret()}" for _ in range(5000)]
    tries += [f"{uuid.uuid4()}:{ring.secret}" for _ in range(5000)]
    assert sum(ring.keys.verify(credential) is not None for credential in tries) == 0
    assert ring.keys.verify(ring.credential) is not None


def test_the_key_of_the_settings_has_no_limits(tmp_path: Path) -> None:
    """It may have any form, and stands beside those of the file as the box's own account."""
    ring = Ring(tmp_path, api_key="any form")
    assert ring.keys.verify("any form") == Caller()
    assert ring.keys.verify("any for") is None
    assert ring.keys.verify(ring.credential) == Caller(owner=ring.key.id, limits=LIMITS)
    assert ring.keys.get(HOUSE) == Caller()


def test_without_keys_there_is_only_the_house(tmp_path: Path) -> None:
    """Nobody needs a key, and a made-up one is nobody's."""
    keys = Keyring(KeyFile(tmp_path / "none"))
    assert not keys.has_keys
    assert keys.get(HOUSE) == Caller()
    assert keys.get("somebody") is None
    assert keys.verify("a:b") is None


def test_changes_are_noticed_while_running(tmp_path: Path) -> None:
    """The first key closes the door, a second one works, a revoked one is refused at once."""
    clock, file = Hand(), KeyFile(tmp_path)
    keys = Keyring(file, None, clock)
    first, first_secret = file.create("first", KeyLimits(), 1.0)
    assert keys.get(HOUSE) == Caller(), "open for as long as the change was not noticed"
    clock.now += 1.0
    assert keys.has_keys
    assert keys.get(HOUSE) is None
    second, second_secret = file.create("second", KeyLimits(), 1.0)
    file.revoke(first.id, 2.0)
    clock.now += 1.0
    assert keys.verify(f"{first.id}:{first_secret}") is None
    assert keys.get(first.id) is None
    assert keys.verify(f"{second.id}:{second_secret}") == Caller(owner=second.id)
    file.revoke(second.id, 3.0)
    clock.now += 1.0
    assert keys.has_keys, "when all are revoked nobody gets in, not everybody"
    assert keys.verify(f"{second.id}:{second_secret}") is None


@pytest.mark.parametrize("damage", ["", "{}}", None], ids=["empty", "garbage", "gone"])
def test_damage_changes_nothing_but_is_told(ring: Ring, damage: str | None) -> None:
    """The last good keys go on holding until the file is whole again."""
    good = ring.file.path.read_bytes()
    assert ring.problem() is None
    if damage is None:
        ring.file.path.unlink()
    else:
        ring.file.path.write_text(damage)
    ring.wait()
    assert str(ring.file.path) in (ring.problem() or "")
    assert ring.keys.has_keys
    assert ring.keys.verify(ring.credential) is not None
    assert ring.keys.verify("a:b") is None
    ring.file.path.write_bytes(good)
    ring.wait()
    assert ring.problem() is None
    assert ring.keys.verify(ring.credential) is not None


def test_a_list_emptied_by_hand_opens_no_door(ring: Ring) -> None:
    """Whoever wants an open box says so with a restart."""
    ring.file.path.write_text('{"version": 1, "keys": []}')
    ring.wait()
    assert ring.keys.verify(ring.credential) is None
    assert ring.keys.has_keys


def test_a_damaged_file_stops_the_start(tmp_path: Path) -> None:
    """A server that cannot know its keys does not come up without them."""
    (tmp_path / "api-keys.json").write_text("{")
    with pytest.raises(ConfigurationError, match="left as it is"):
        Keyring(KeyFile(tmp_path))


def test_the_log_says_what_is_wrong_without_the_secret(ring: Ring) -> None:
    """Four reasons, none of which repeats what a caller sent."""
    wrong, cut = make_secret(), ring.secret[:-1]
    assert ring.keys.explain(f"{ring.key.id}:{wrong}").endswith("is wrong")
    assert ring.keys.explain(f"{ring.key.id}:{cut}").endswith("is mistyped or cut")
    assert ring.keys.explain(f"{ring.secret}:{ring.key.id}") == "unknown key id"
    ring.file.revoke(ring.key.id, 2.0)
    ring.wait()
    assert ring.keys.explain(ring.credential) == f"key {ring.key.id} is revoked"
