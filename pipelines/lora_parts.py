"""What a LoRA adds to one layer's weight, kept in factors that are far smaller than the sum.

Shapes: the layer maps `in` to `out` features, N is any number of tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelines.lora_names import Place

MOST_NUMBERS = 2**24
"""In what is made on the way to a LoKr's sum, of however many tokens: 34 MB in bfloat16."""


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
class Side:
    """One side of a Kronecker product: a matrix, or two factors of it that are smaller than it."""

    factors: tuple[Tensor, ...]

    @classmethod
    def of(cls, *factors: Tensor) -> "Side":
        """Make the product of these, multiplied out unless that would be larger."""
        side = cls(factors)
        rows, columns = side.shape
        return side if rows * columns >= side.numel else cls((side.whole(),))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the whole."""
        return self.factors[0].shape[0], self.factors[-1].shape[1]

    @property
    def numel(self) -> int:
        """The numbers in the factors: also what multiplying one vector costs."""
        return sum(factor.numel() for factor in self.factors)

    @property
    def nbytes(self) -> int:
        """What the factors take."""
        return sum(factor.nbytes for factor in self.factors)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Side":
        """Return it in this type on this device, its tensors no views of others."""
        return Side(tuple(factor.to(device, dtype, copy=True) for factor in self.factors))

    def rows(self, begin: int, end: int) -> "Side":
        """Return these rows of it."""
        first, *others = self.factors
        return Side((first[begin:end], *others))

    def whole(self) -> Tensor:
        """Return it multiplied out, in float32 if there is anything to multiply."""
        if len(self.factors) == 1:
            return self.factors[0]
        first, second = self.factors
        return first.float() @ second.float()

    def before(self, grids: Tensor) -> Tensor:
        """Map grids (N, columns, any) to (N, rows, any)."""
        for factor in reversed(self.factors):
            grids = factor @ grids
        return grids

    def behind(self, grids: Tensor) -> Tensor:
        """Map grids (N, any, columns) to (N, any, rows)."""
        for factor in reversed(self.factors):
            grids = grids @ factor.t()
        return grids


@dataclass(frozen=True, slots=True)
class Kronecker:
    """A LoKr's (https://arxiv.org/abs/2309.14859): factor * (left (a, b) kron right (c, d)).

    Of its a * c rows those in `rows` count, in their order; d * b is `in`.
    """

    left: Side
    right: Side
    factor: float
    rows: tuple[range, ...]

    @property
    def nbytes(self) -> int:
        """What its tensors take."""
        return self.left.nbytes + self.right.nbytes

    def to(self, device: torch.device, dtype: torch.dtype) -> "Kronecker":
        """Return it in this type on this device, its tensors no views of others."""
        return replace(self, left=self.left.to(device, dtype), right=self.right.to(device, dtype))

    def delta(self) -> Tensor:
        """Return the sum itself (out, in), in float32."""
        left, right = self.left.whole().float(), self.right.whole().float()
        product = torch.kron(left, right) * self.factor
        return torch.cat([product[rows.start : rows.stop] for rows in self.rows])

    def add_to(self, result: Tensor, tokens: Tensor, scale: float) -> None:
        """Add to `result` (N, out), in place, what it makes of `tokens` (N, in).

        Some tokens at a time, so that what is made on the way is small whatever the sides are.
        """
        (a, b), (c, d) = self.left.shape, self.right.shape
        count = max(1, MOST_NUMBERS // max(a * c, b * d))
        for sums, part in zip(torch.split(result, count), torch.split(tokens, count), strict=True):
            product = self._multiply(part.reshape(-1, b, d)).reshape(-1, a * c)
            begin = 0
            for rows in self.rows:
                added = product[:, rows.start : rows.stop]
                sums[:, begin : begin + len(rows)].add_(added, alpha=self.factor * scale)
                begin += len(rows)

    def _multiply(self, grids: Tensor) -> Tensor:
        """Map (N, b, d) to (N, a, c), in the order that costs less.

        What then lies between the two is never larger than the larger of the two themselves.
        """
        (a, b), (c, d) = self.left.shape, self.right.shape
        left, right = self.left.numel, self.right.numel
        if right * b + left * c <= left * d + right * a:
            return self.left.before(self.right.behind(grids))
        return self.right.behind(self.left.before(grids))


Addition = Pair | Kronecker


def make_addition(parts: Mapping[str, Tensor], factor: float, place: Place) -> Addition:
    """Make what the parts of one name in a file add to one of its places.

    The parts are named as by `lora_names.split_key`, and fit the layer.
    """
    if "up" in parts:
        rows = _rows_of(place, len(parts["up"]))
        up = torch.cat([parts["up"][part.start : part.stop] for part in rows])
        return Pair(parts["down"], up, factor)
    left, right = (_side(parts, name) for name in ("w1", "w2"))
    height = right.shape[0]
    rows = _rows_of(place, left.shape[0] * height)
    # Rows of the left side that only make rows of other layers are left out.
    first = min(part.start for part in rows) // height
    last = -(-max(part.stop for part in rows) // height)
    skipped = first * height
    rows = tuple(range(part.start - skipped, part.stop - skipped) for part in rows)
    return Kronecker(left.rows(first, last), right, factor, rows)


def _rows_of(place: Place, count: int) -> tuple[range, ...]:
    """Return the rows of `count` that go to this place, in their order there."""
    size = count // place.shares
    begin, end = place.share * size, (place.share + 1) * size
    if not place.swapped:
        return (range(begin, end),)
    middle = (begin + end) // 2
    return range(middle, end), range(begin, middle)


def _side(parts: Mapping[str, Tensor], name: str) -> Side:
    if name in parts:
        return Side((parts[name],))
    return Side.of(parts[f"{name}_a"], parts[f"{name}_b"])
