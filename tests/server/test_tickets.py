"""Tickets: only ours, only for a while, and only while their key is good."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from server.errors import ConfigurationError
from server.keyfile import KeyFile, KeyLimits
from server.keys import HOUSE, Caller, Keyring
from server.tickets import KEY_NAME, TOKEN_SECONDS, Ticket, Tickets

NOW = 1_900_000_000.0
TICKET = Ticket(
    name="a" * 32 + ".png",
    owner="ann",
    in_parts=False,
    seconds=60.0,
    acl='{"default":"forbid","rules":[]}',
    expires_at=NOW + 60,
)


class Box:
    """Tickets of a folder whose clock and keys the test sets."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.callers = {"ann": Caller(owner="ann")}
        self.tickets = Tickets(folder, lambda: self.now, self.callers.get)
        self.tickets.load()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    """Return tickets with a new secret."""
    return Box(tmp_path / "keys")


def test_a_ticket_comes_back_with_its_owner(box: Box) -> None:
    """Every field survives, a life without end too."""
    ann = box.callers["ann"]
    for ticket in (TICKET, replace(TICKET, seconds=float("inf"), acl=None, in_parts=True)):
        assert box.tickets.read(box.tickets.sign(ticket)) == (ticket, ann)
    token, expires_at = box.tickets.issue_token(ann)
    assert expires_at == NOW + TOKEN_SECONDS
    assert box.tickets.read_token(token) == ann


def test_they_end_with_their_time(box: Box) -> None:
    """At its last moment each is over."""
    text = box.tickets.sign(TICKET)
    token, expires_at = box.tickets.issue_token(Caller(owner="ann"))
    box.now = TICKET.expires_at - 0.1
    assert box.tickets.read(text)
    box.now = TICKET.expires_at
    assert box.tickets.read(text) is None
    box.now = expires_at - 0.1
    assert box.tickets.read_token(token)
    box.now = expires_at
    assert box.tickets.read_token(token) is None


def test_they_end_with_their_key(box: Box) -> None:
    """What was signed for a key is worth nothing once the key is revoked."""
    text, (token, _) = box.tickets.sign(TICKET), box.tickets.issue_token(Caller(owner="ann"))
    del box.callers["ann"]
    assert box.tickets.read(text) is None
    assert box.tickets.read_token(token) is None


def test_nothing_else_passes(box: Box, tmp_path: Path) -> None:
    """No changed character, no other server's ticket, and neither kind in the other's place."""
    text, (token, _) = box.tickets.sign(TICKET), box.tickets.issue_token(Caller(owner="ann"))
    for index, character in enumerate(text):
        changed = text[:index] + ("A" if character != "A" else "B") + text[index + 1 :]
        # The last character of the signature carries bits that are not part of it.
        assert box.tickets.read(changed) is None or index == len(text) - 1
    other = Box(tmp_path / "other").tickets
    for forged in ("", ".", "a.b", "\u00fc", "x" * 10_000, token, other.sign(TICKET)):
        assert box.tickets.read(forged) is None
    for forged in ("", text, other.issue_token(Caller(owner="ann"))[0]):
        assert box.tickets.read_token(forged) is None


def test_the_secret_is_private_and_stays(box: Box, tmp_path: Path) -> None:
    """Made once, for its owner's eyes only, whatever a restored backup made of it."""
    path = tmp_path / "keys" / KEY_NAME
    assert [item.name for item in path.parent.iterdir()] == [KEY_NAME]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    text = box.tickets.sign(TICKET)
    assert Box(tmp_path / "keys").tickets.read(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_damaged_secret_is_told(tmp_path: Path) -> None:
    """A server that signed with half a secret would be easy to forge."""
    (tmp_path / KEY_NAME).write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="delete it to have a new one"):
        Box(tmp_path)


def test_a_token_opens_its_applications_alone(box: Box) -> None:
    """By alias whoever owns it, or by owner and alias; for as long as was asked, then never."""
    ann = box.callers["ann"]
    token = box.tickets.issue_app_token(ann, ["flux-2", "fal-ai/flux-2-flex", "me/own"], 120)
    for app_id in ("fal-ai/flux-2", "fal-ai/flux-2-flex", "me/own", "other/flux-2"):
        assert box.tickets.read_app_token(token, app_id) == ann
    for app_id in ("fal-ai/flux-2-dev", "fal-ai/own", "flux-2-flex", "other/flux-2-flex", "", "/"):
        assert box.tickets.read_app_token(token, app_id) is None
    box.now += 119.9
    assert box.tickets.read_app_token(token, "fal-ai/flux-2") == ann
    box.now += 0.1
    assert box.tickets.read_app_token(token, "fal-ai/flux-2") is None


def test_a_token_ends_with_its_key_and_is_no_other_kind(box: Box, tmp_path: Path) -> None:
    """Nor is anything else good as one."""
    ann = box.callers["ann"]
    token = box.tickets.issue_app_token(ann, ["flux-2"], 120)
    assert box.tickets.read_token(token) is None
    assert box.tickets.read(token) is None
    upload_token, _ = box.tickets.issue_token(ann)
    stranger = Box(tmp_path / "other").tickets.issue_app_token(ann, ["flux-2"], 120)
    for forged in ("", "a.b", "\u00fc", token + "x", upload_token, stranger):
        assert box.tickets.read_app_token(forged, "fal-ai/flux-2") is None
    del box.callers["ann"]
    assert box.tickets.read_app_token(token, "fal-ai/flux-2") is None


def house_tickets(folder: Path, api_key: str | None) -> Tickets:
    """Return the tickets of a server that is started with this key, or without one."""
    keys = Keyring(KeyFile(folder), api_key)
    tickets = Tickets(folder, lambda: NOW, keys.get, keys.house_digest)
    tickets.load()
    return tickets


@pytest.mark.parametrize("before", [None, "old key"])
@pytest.mark.parametrize("after", [None, "old key", "new key"])
def test_what_the_house_signed_ends_with_its_key(
    tmp_path: Path, before: str | None, after: str | None
) -> None:
    """Of every kind, when the key is set, replaced or gone; a restart with the same ends none."""
    old, house = house_tickets(tmp_path, before), Caller()
    ticket = replace(TICKET, owner=HOUSE)
    text, (token, _) = old.sign(ticket), old.issue_token(house)
    app_token = old.issue_app_token(house, ["flux-2"], 120)
    new = house_tickets(tmp_path, after)
    is_same = before == after
    assert new.read(text) == ((ticket, house) if is_same else None)
    assert new.read_token(token) == (house if is_same else None)
    assert new.read_app_token(app_token, "fal-ai/flux-2") == (house if is_same else None)


def test_another_key_of_the_house_ends_nobody_else_s(tmp_path: Path) -> None:
    """Those of a key of the file go on."""
    caller = Caller(owner=KeyFile(tmp_path).create("ann", KeyLimits(), 1.0)[0].id)
    token, _ = house_tickets(tmp_path, "old key").issue_token(caller)
    assert house_tickets(tmp_path, "new key").read_token(token) == caller


def test_a_token_helps_nobody_to_guess_the_key_of_the_house(tmp_path: Path) -> None:
    """Two servers with the same key mark their tokens differently."""
    marks = set()
    for name in ("one", "two"):
        token, _ = house_tickets(tmp_path / name, "weak").issue_token(Caller())
        marks.add(token.partition(".")[0])
    assert len(marks) == 2
