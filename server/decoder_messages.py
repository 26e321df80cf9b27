"""What gateway and decoder say to each other: a line of JSON each way.

JSON because a decoder that a picture has taken over must never run code in the gateway.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from server.images import RefusalType


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Gateway to decoder: make a PNG at `target` of the picture in `source`."""

    source: Path
    target: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What `ImageRefusedError` carries."""

    error_type: RefusalType
    message: str
    ctx: dict[str, int | list[str]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Decoder to gateway: it is ready for an order, and what became of the last one.

    Neither refusal nor problem: the picture is at its target. `problem` is the box's (a full
    disk), never the picture's. `retires`: this process is about to end.
    """

    refusal: Refusal | None = None
    problem: str | None = None
    retires: bool = False


ORDER: TypeAdapter[Order] = TypeAdapter(Order)
ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
