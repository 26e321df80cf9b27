"""What a LoRA adds to one layer's weight, kept in factors that are far smaller than the sum.

Shapes: the layer maps `in` to `out` features, N is any number of tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelines.lora_names import Place


@dataclass(frozen=True, slots=True)
class Pair:
    """A LoRA's (https://arxiv.org/abs/2106.09685): factor * up (out, r) @ down (r, in)."""

    down: Tensor
    up: Tensor
    factor: float

    @property
    def nbytes(self) -> int:
        """What its tensors take."""
        return self.down.nbytes + self.up.nbytes

    def to(self, device: torch.device, dtype: torch.dtype) -> "Pair":
        """Return it in this type on this device, its tensors no views of others."""
        return replace(
            self,
            down=self.down.to(device, dtype, copy=True),
            up=self.up.to(device, dtype, copy=True),
        )

    def delta(self) -> Tensor:
        """Return the sum itself (out, in), in float32."""
        return (self.up.float() @ self.down.float()) * self.factor

    def add_to(self, result: Tensor, tokens: Tensor, scale: float) -> None:
        """Add to `result` (N, out), in place, what it makes of `tokens` (N, in)."""
        result.addmm_(tokens @ self.down.t(), self.up.t(), alpha=self.factor * scale)


@dataclass(frozen=True, slots=True)
class Kronecker:
    """A LoKr's (https://arxiv.org/abs/2309.14859): factor * (left (a, b) kron right (c, d)).

    Of its a * c rows those in `rows` count, in their order; d * b is `in`.
    """

    left: Tensor
    right: Tensor
    factor: float
    rows: tuple[range, ...]

    @property
    def nbytes(self) -> int:
        """What its tensors take."""
        return self.left.nbytes + self.right.nbytes

    def to(self, device: torch.device, dtype: torch.dtype) -> "Kronecker":
        """Return it in this type on this device, its tensors no views of others."""
        return replace(
            self,
            left=self.left.to(device, dtype, copy=True),
            right=self.right.to(device, dtype, copy=True),
        )

    def delta(self) -> Tensor:
        """Return the sum itself (out, in), in float32."""
        product = torch.kron(self.left.float(), self.right.float()) * self.factor
        return torch.cat([product[rows.start : rows.stop] for rows in self.rows])

    def add_to(self, result: Tensor, tokens: Tensor, scale: float) -> None:
        """Add to `result` (N, out), in place, what it makes of `tokens` (N, in)."""
        grid = tokens.reshape(len(tokens), self.left.shape[1], self.right.shape[1])
        product = (self.left @ (grid @ self.right.t())).reshape(len(tokens), -1)
        added = torch.cat([product[:, rows.start : rows.stop] for rows in self.rows], dim=1)
        result.add_(added, alpha=self.factor * scale)


Addition = Pair | Kronecker


def make_addition(parts: Mapping[str, Tensor], factor: float, place: Place) -> Addition:
    """Make what the parts of one name in a file add to one of its places.

    The parts are named as by `lora_names.split_key`, and fit the layer.
    """
    if "up" in parts:
        rows = _rows_of(place, len(parts["up"]))
        up = torch.cat([parts["up"][part.start : part.stop] for part in rows])
        return Pair(parts["down"], up, factor)
    left, right = (_product(parts, name) for name in ("w1", "w2"))
    rows = _rows_of(place, len(left) * len(right))
    # Rows of the left factor that only make rows of other layers are left out.
    first = min(part.start for part in rows) // len(right)
    last = -(-max(part.stop for part in rows) // len(right))
    skipped = first * len(right)
    rows = tuple(range(part.start - skipped, part.stop - skipped) for part in rows)
    return Kronecker(left[first:last], right, factor, rows)


def _rows_of(place: Place, count: int) -> tuple[range, ...]:
    """Return the rows of `count` that go to this place, in their order there."""
    size = count // place.shares
    begin, end = place.share * size, (place.share + 1) * size
    if not place.swapped:
        return (range(begin, end),)
    middle = (begin + end) // 2
    return range(middle, end), range(begin, middle)


def _product(parts: Mapping[str, Tensor], name: str) -> Tensor:
    if name in parts:
        return parts[name]
    return parts[f"{name}_a"].float() @ parts[f"{name}_b"].float()
