"""What the sender of a file may say of its life: how long it is kept and who may read it.

The form is that of fal's `X-Fal-Object-Lifecycle` header:
`{"expiration_duration_seconds": n, "initial_acl": {"default": "forbid", "rules": [...]}}`.
"""

import json
import math
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, ValidationError

LONGEST_SECONDS = 100 * 365 * 24 * 3600
MAX_RULES = 100


class Decision(StrEnum):
    """What a rule says about a reader; here `hide` and `forbid` look the same from outside."""

    ALLOW = "allow"
    FORBID = "forbid"
    HIDE = "hide"


class Rule(BaseModel):
    """One reader, by the id of the key, and the decision about it."""

    model_config = ConfigDict(frozen=True)

    user: str = Field(max_length=256)
    decision: Decision


class Acl(BaseModel):
    """Who may read a file besides its owner: a rule for each reader, the default for all others."""

    model_config = ConfigDict(frozen=True)

    default: Decision = Decision.ALLOW
    rules: tuple[Rule, ...] = Field((), max_length=MAX_RULES)


class _Preference(BaseModel):
    expiration_duration_seconds: float | None = Field(
        None, ge=0, le=LONGEST_SECONDS, allow_inf_nan=False, strict=True
    )
    initial_acl: Acl | None = None


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """A wish: `seconds` None is as the server has it, infinity for good; `acl` is JSON text."""

    seconds: float | None = None
    acl: str | None = None


def read_lifecycle(text: str | None) -> Lifecycle:
    """Read the header's JSON; no header is no wish.

    fal takes null and 0 for "never expires". Raises ValueError for anything of another form.
    """
    if text is None:
        return Lifecycle()
    try:
        preference = _Preference.model_validate_json(text)
    except ValidationError:
        raise ValueError("the lifecycle must be a JSON object of fal's form") from None
    seconds = preference.expiration_duration_seconds
    if "expiration_duration_seconds" in preference.model_fields_set and not seconds:
        seconds = math.inf
    acl = preference.initial_acl
    return Lifecycle(seconds, acl.model_dump_json() if acl else None)


def may_read(acl: str | None, owner: str, reader: str | None) -> bool:
    """Say whether `reader` may have the file; None is somebody without a key."""
    if acl is None or reader == owner:
        return True
    known = json.loads(acl)
    for rule in known["rules"]:
        if reader is not None and rule["user"] == reader:
            return bool(rule["decision"] == Decision.ALLOW)
    return bool(known["default"] == Decision.ALLOW)
