"""What a LoKr adds to a layer: the Kronecker product, at no more memory than its file's size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines import lora_parts
from pipelines.lora_file import read_fitting
from pipelines.lora_names import Place
from pipelines.lora_parts import Kronecker, make_addition

LAYER = "transformer_blocks.0.attn.to_q"
FACTORS = [(), ("w1",), ("w2",), ("w1", "w2")]

SHAPES = [
    ((4, 4), (16, 16)),
    ((64, 1), (1, 64)),
    ((1, 64), (64, 1)),
    ((8, 2), (8, 32)),
    ((2, 32), (32, 2)),
    ((64, 64), (1, 1)),
    ((1, 1), (192, 48)),
]
"""Of the two sides: as they are made in practice, and where one order of the two is far better."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the most numbers that a tensor made meanwhile has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._known: set[int] = set()

    def know(self, *tensors: Tensor) -> None:
        """Leave out what was there before."""
        self._known |= {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def __torch_dispatch__(
        self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in self._known:
            self.most = max(self.most, result.untyped_storage().nbytes() // result.element_size())
        return result


def make_parts(
    left: tuple[int, int], right: tuple[int, int], factored: tuple[str, ...], rank: int = 2
) -> dict[str, Tensor]:
    """Make the parts of a LoKr of these sides."""
    parts = {}
    for side, (rows, columns) in (("w1", left), ("w2", right)):
        if side in factored:
            parts[f"{side}_a"] = torch.randn(rows, rank)
            parts[f"{side}_b"] = torch.randn(rank, columns)
        else:
            parts[side] = torch.randn(rows, columns)
    return parts


def multiply_out(parts: dict[str, Tensor]) -> Tensor:
    """Return the Kronecker product of the two sides."""
    left, right = (
        parts[side] if side in parts else parts[f"{side}_a"] @ parts[f"{side}_b"]
        for side in ("w1", "w2")
    )
    return torch.kron(left, right)


def make_kronecker(parts: dict[str, Tensor], place: Place) -> Kronecker:
    """Make what these parts add to a place, twice as strong."""
    addition = make_addition(parts, 2.0, place)
    assert isinstance(addition, Kronecker)
    return addition


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("factored", FACTORS)
def test_it_adds_the_kronecker_product_in_little_memory(
    monkeypatch: pytest.MonkeyPatch,
    shapes: tuple[tuple[int, int], tuple[int, int]],
    factored: tuple[str, ...],
) -> None:
    """Of many tokens, a few at a time, none of which takes more than it does in or out."""
    torch.manual_seed(1)
    parts = make_parts(*shapes, factored)
    expected = 2.0 * multiply_out(parts)
    addition = make_kronecker(parts, Place(LAYER)).to(torch.device("cpu"), torch.float32)
    torch.testing.assert_close(addition.delta(), expected)
    tokens, sums = torch.randn(100, expected.shape[1]), torch.randn(100, len(expected))
    added = sums.clone()
    most = 3 * max(expected.shape)
    monkeypatch.setattr(lora_parts, "MOST_NUMBERS", most)
    watch = Watch()
    watch.know(added, tokens, *addition.left.factors, *addition.right.factors)
    with watch:
        addition.add_to(added, tokens, 0.5)
    torch.testing.assert_close(added, sums + 0.5 * tokens @ expected.t(), rtol=1e-4, atol=1e-4)
    assert watch.most <= most


@pytest.mark.parametrize("factored", FACTORS)
@pytest.mark.parametrize("share", [0, 1, 2])
def test_a_third_of_its_rows_goes_to_each_of_three_layers(
    factored: tuple[str, ...], share: int
) -> None:
    """Although the rows of its left side do not come in thirds."""
    torch.manual_seed(2)
    parts = make_parts((8, 4), (24, 16), factored)
    expected = 2.0 * multiply_out(parts).chunk(3)[share]
    addition = make_kronecker(parts, Place(LAYER, share, 3))
    torch.testing.assert_close(addition.delta(), expected)
    tokens, added = torch.randn(5, 64), torch.zeros(5, 64)
    addition.add_to(added, tokens, 1.0)
    torch.testing.assert_close(added, tokens @ expected.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("left", "right"), [((1, 1), (1024, 1024)), ((1024, 1024), (1, 1))])
def test_a_small_file_stays_small(
    tmp_path: Path, left: tuple[int, int], right: tuple[int, int]
) -> None:
    """Factors that stand for a matrix a hundred times their size are never multiplied out."""
    parts = make_parts(left, right, ("w1", "w2"), rank=1)
    path = tmp_path / "lokr.safetensors"
    save_file({f"{LAYER}.lokr_{name}": part for name, part in parts.items()}, path)
    size_bytes = path.stat().st_size
    watch = Watch()
    with watch:
        lora = read_fitting(path, {LAYER: (1024, 1024)}).to(torch.device("cpu"), torch.float32)
    assert lora.nbytes <= size_bytes
    assert watch.most <= size_bytes


def test_factors_that_take_more_than_their_product_are_multiplied_out() -> None:
    """So that what lies on the device is the smaller of the two."""
    addition = make_kronecker(make_parts((4, 4), (16, 16), ("w1", "w2"), rank=8), Place(LAYER))
    assert addition.left.numel == 16
    assert addition.right.numel == 256
    factors = make_kronecker(make_parts((4, 4), (16, 16), ("w2",), rank=7), Place(LAYER)).right
    assert factors.numel == 7 * 32
