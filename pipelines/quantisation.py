"""The blocks' linear layers in 8 bits: fp8 or int8, with a scale for each row and each token.

97 % of the weights are here and nearly all of the work, so this halves memory and, on cards that
multiply 8 bits faster, time. What stands around the blocks is small and keeps its precision.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.types import Precision
from pipelines.variants import Module, derive, find_block_linears

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""What the largest value of a row becomes. E4M3: https://arxiv.org/abs/2209.05433, table 1."""

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""The scale of a row of zeros: with 0 it would be 0 / 0."""

SIZE_MULTIPLE = 16
"""Both widths of a layer must be multiples of this for the device's 8-bit kernels."""


def quantise_rows(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round each row of `values` (N, K) to `dtype`, its absolute maximum to the largest number.

    Returns the rows (N, K) and the float32 scales (N, 1) that they are to be multiplied by. A row
    with a value that is not finite gets a scale that is not, so that this is not hidden.
    """
    largest = values.abs().amax(dim=-1, keepdim=True).float()
    scales = (largest / LARGEST[dtype]).clamp(min=SMALLEST_SCALE)
    quotients = values / scales  # in float32, and no larger than the largest number but for an ulp
    return (quotients.round() if dtype is torch.int8 else quotients).to(dtype), scales


class QuantisedLinear(nn.Module):
    """A linear layer without bias, its weights rounded once and its input at every call.

    A token's result (..., out) depends on nothing but this token (..., in), and has its type. Do
    not cast the module: `to(dtype)` would take the 8-bit floats for weights in full precision.
    Raises `ValueError` for a layer with a bias or with a width that the kernels do not take.
    """

    precision: ClassVar[Precision]
    _dtype: ClassVar[torch.dtype]
    weight: Tensor  # (out, in)
    weight_scale: Tensor  # (out, 1), float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        widths_fit = self.in_features % SIZE_MULTIPLE == self.out_features % SIZE_MULTIPLE == 0
        if "bias" in dict(linear.named_parameters()) or not widths_fit:
            raise ValueError(f"{linear} has a bias, or a width not divisible by {SIZE_MULTIPLE}")
        weight, scale = quantise_rows(linear.weight.detach(), self._dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        tokens, scales = quantise_rows(x.reshape(-1, self.in_features), self._dtype)
        product = self._multiply(tokens, scales, x.dtype).to(x.dtype)
        return product.reshape(*x.shape[:-1], self.out_features)

    @abstractmethod
    def _multiply(self, tokens: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Multiply quantised tokens (N, in), made of `dtype`; returns (N, out) of any type."""


class Float8Linear(QuantisedLinear):
    """A linear layer in E4M3: 3 bits of mantissa, so each number is off by 1/16 at most."""

    precision = Precision.FP8
    _dtype = torch.float8_e4m3fn

    def _multiply(self, tokens: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        weight, weight_scale = self.weight.t(), self.weight_scale.t()
        if not tokens.is_cuda and dtype is not torch.bfloat16:
            # In float64 products and sums of E4M3 are exact (multiples of 2**-18 below 2**18 * in),
            # so nothing but the rounding to 8 bits shows, and their order does not matter.
            return tokens.double() @ weight.double() * weight_scale * scales
        # With a scale for each row CUDA has only bfloat16 to give.
        return torch._scaled_mm(  # noqa: SLF001  (there is no other way to it)
            tokens, weight, scales, weight_scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )


class Int8Linear(QuantisedLinear):
    """A linear layer in 8-bit integers, for cards without 8-bit floats; the sums are exact."""

    precision = Precision.INT8
    _dtype = torch.int8

    def _multiply(self, tokens: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ARG002
        count = tokens.shape[0]
        if count <= 16:  # CUDA's kernel wants more
            tokens = functional.pad(tokens, (0, 0, 0, 17 - count))
        sums = torch._int_mm(tokens, self.weight.t())[:count]  # noqa: SLF001  (as above)
        # The small scale first: with huge tokens the other order could overflow on the way.
        return sums.float().mul_(self.weight_scale.t()).mul_(scales)


LAYERS = {layer.precision: layer for layer in (Float8Linear, Int8Linear)}
"""What stands for a linear layer in each 8-bit precision."""


def quantise_blocks(transformer: Module, precision: Precision) -> Module:
    """Make a tree like `transformer` with quantised blocks; all other tensors are shared.

    The layers are made one by one, so that memory never holds more than the result and what one
    layer needs. Raises `ValueError` for a precision that is not of 8 bits.
    """
    if precision not in LAYERS:
        raise ValueError(f"blocks cannot be quantised to {precision}")
    return derive(transformer, dict.fromkeys(find_block_linears(transformer), LAYERS[precision]))
