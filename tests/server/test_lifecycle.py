"""Lifetimes and readers of files, in fal's form."""

import json
import math

import pytest

from server.lifecycle import Lifecycle, may_read, read_lifecycle


@pytest.mark.parametrize(
    ("preference", "seconds"),
    [
        (None, None),
        ({}, None),
        ({"expiration_duration_seconds": 60}, 60),
        ({"expiration_duration_seconds": 0.5}, 0.5),
        ({"expiration_duration_seconds": 0}, math.inf),
        ({"expiration_duration_seconds": None}, math.inf),
    ],
)
def test_a_lifetime_is_read(preference: object, seconds: float | None) -> None:
    """No word is no wish; null and 0 mean for good, as fal's client says of its backend."""
    text = None if preference is None else json.dumps(preference)
    assert read_lifecycle(text) == Lifecycle(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "[]",
        "3",
        '{"expiration_duration_seconds": -1}',
        '{"expiration_duration_seconds": true}',
        '{"expiration_duration_seconds": "60"}',
        '{"expiration_duration_seconds": NaN}',
        '{"expiration_duration_seconds": 1e999}',
        '{"initial_acl": {"default": "deny"}}',
        '{"initial_acl": {"rules": [{"user": "a"}]}}',
        '{"initial_acl": {"rules": [' + "[" * 100_000,
        json.dumps({"initial_acl": {"rules": [{"user": "a", "decision": "allow"}] * 101}}),
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    """What cannot be kept is not taken for "no wish"."""
    with pytest.raises(ValueError, match="lifecycle"):
        read_lifecycle(text)


@pytest.mark.parametrize(
    ("initial_acl", "reader", "expected"),
    [
        (None, None, True),
        ({}, None, True),
        ({"default": "forbid"}, None, False),
        ({"default": "hide"}, "other", False),
        ({"default": "forbid"}, "owner", True),
        ({"default": "forbid", "rules": [{"user": "a", "decision": "allow"}]}, "a", True),
        ({"default": "forbid", "rules": [{"user": "a", "decision": "allow"}]}, "b", False),
        ({"rules": [{"user": "a", "decision": "hide"}]}, "a", False),
        ({"rules": [{"user": "a", "decision": "hide"}]}, None, True),
        ({"rules": [{"user": "owner", "decision": "forbid"}]}, "owner", True),
    ],
)
def test_who_may_read(initial_acl: object, reader: str | None, expected: bool) -> None:
    """The owner always may; others by their rule, and by the default where there is none."""
    text = json.dumps({"initial_acl": initial_acl} if initial_acl is not None else {})
    assert may_read(read_lifecycle(text).acl, "owner", reader) is expected
