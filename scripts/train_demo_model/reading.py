"""Meanings as numbers: what the text encoder's read-out is trained on and judged by."""

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from scripts.train_demo_model.meaning import (
    ACTIONS,
    PLACES,
    RELATIONS,
    SIZES,
    Meaning,
    Subject,
)
from scripts.train_demo_model.world import GROUND_KINDS, SHAPES, parse_colour

_SUBJECT_FIELDS = (
    ("shape", len(SHAPES) + 1),
    ("coloured", 2),
    ("colour", 3),
    ("count", 4),
    ("size", len(SIZES) + 1),
    ("place", len(PLACES) + 1),
)
FIELDS: tuple[tuple[str, int], ...] = (
    ("action", len(ACTIONS)),
    *((f"first_{name}", width) for name, width in _SUBJECT_FIELDS),
    *((f"second_{name}", width) for name, width in _SUBJECT_FIELDS),
    ("relation", len(RELATIONS) + 1),
    ("ground", len(GROUND_KINDS) + 1),
    ("across", 2),
    ("ground_first_colour", 3),
    ("ground_second_colour", 3),
)
"""The fields of a read-out and their widths: classes for a choice, three numbers for a colour."""

READING_WIDTH = sum(width for _, width in FIELDS)


def encode_meanings(meanings: Sequence[Meaning]) -> torch.Tensor:
    """Write meanings as numbers (B, F): an index for a choice, three in [-1, 1] for a colour.

    A colour that is not said is three times NaN.
    """
    return torch.tensor([_encode_meaning(meaning) for meaning in meanings])


def _encode_meaning(meaning: Meaning) -> list[float]:
    numbers = [float(ACTIONS.index(meaning.action))]
    for subject in (meaning.first, meaning.second):
        numbers += _encode_subject(subject)
    numbers.append(_choice(RELATIONS, meaning.relation))
    ground = meaning.ground
    numbers.append(_choice(GROUND_KINDS, ground.kind if ground else None))
    numbers.append(float(ground.across) if ground else 0.0)
    numbers += _encode_colour(ground.first if ground else None)
    numbers += _encode_colour(ground.second if ground else None)
    return numbers


def _encode_subject(subject: Subject | None) -> list[float]:
    subject = subject or Subject(count=0)
    return [
        _choice(SHAPES, subject.shape),
        float(subject.colour is not None),
        *_encode_colour(subject.colour),
        float(subject.count),
        _choice(tuple(SIZES), subject.size),
        _choice(tuple(PLACES), subject.place),
    ]


def _encode_colour(words: str | None) -> list[float]:
    if words is None:
        return [float("nan")] * 3
    return [value / 127.5 - 1 for value in parse_colour(words)]


def _choice(names: Sequence[str], name: str | None) -> float:
    return 0.0 if name is None else 1.0 + names.index(name)


def _is_colour(name: str) -> bool:
    return name.endswith("colour")


def _split(
    reading: torch.Tensor, targets: torch.Tensor
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Cut a read-out (B, R) and its targets (B, F) into (field, read-out part, target part)."""
    parts = []
    at = read_at = 0
    for name, width in FIELDS:
        numbers = 3 if _is_colour(name) else 1
        parts.append((name, reading[:, read_at : read_at + width], targets[:, at : at + numbers]))
        at, read_at = at + numbers, read_at + width
    return parts


def meaning_loss(reading: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy over the choices plus squared error over the colours that were said."""
    total = reading.new_zeros(())
    for name, part, target in _split(reading, targets):
        if _is_colour(name):
            said = ~target[:, 0].isnan()
            if said.any():
                total = total + 4 * (part[said] - target[said]).square().mean()
        else:
            total = total + cross_entropy(part, target[:, 0].long())
    return total


def read_correctly(reading: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Whether all of a meaning was read (B): every choice, and colours to within a tenth."""
    right = torch.ones(reading.shape[0], dtype=torch.bool, device=reading.device)
    for name, part, target in _split(reading, targets):
        if _is_colour(name):
            near = (part - target).abs().amax(dim=1) < 0.2
            right &= near | target[:, 0].isnan()
        else:
            right &= part.argmax(dim=1) == target[:, 0].long()
    return right
