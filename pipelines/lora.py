"""A LoRA built into a transformer for good: in the weights of its layers, or beside them.

That is for one that many requests share, as the eight-step one. What callers bring is put on and
off by `adapters`.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from pipelines.lora_file import Lora
from pipelines.lora_parts import Pair
from pipelines.variants import Module, derive


def fuse(transformer: Module, lora: Lora) -> Module:
    """Make a tree like `transformer` with the LoRA in new weights of the layers that it names.

    The sum is made in float32 and rounded once, to the weight's type. In float32 that is what
    diffusers' `fuse_lora` gives; in bfloat16 it rounds what it adds before the sum, too.
    """
    return derive(
        transformer, {name: partial(fuse_layer, pair) for name, pair in lora.pairs.items()}
    )


def attach(transformer: Module, lora: Lora, device: torch.device | None = None) -> Module:
    """Make a tree like `transformer` with the LoRA beside the weights, which are shared.

    For quantised layers, and where there is no memory for more weights. The pairs lie on the
    device, by default where the weights do.
    """
    return derive(
        transformer,
        {name: partial(LoraLinear, pair=pair, device=device) for name, pair in lora.pairs.items()},
    )


class LoraLinear(nn.Module):
    """A linear layer, of any kind, with a pair beside it: base(x) + factor * up(down(x))."""

    down: torch.Tensor
    up: torch.Tensor

    def __init__(self, base: Any, pair: Pair, device: torch.device | None = None) -> None:
        super().__init__()
        weight = base.weight
        # Beside 8-bit weights the pair keeps the type that it is stored in.
        dtype = weight.dtype if isinstance(base, nn.Linear) else torch.bfloat16
        self.base = base
        self.factor = pair.factor
        place = device or weight.device
        self.register_buffer("down", pair.down.to(place, dtype))
        self.register_buffer("up", pair.up.to(place, dtype))

    @property
    def weight(self) -> torch.Tensor:
        """The base's own weight: those who ask a layer for its type or device ask this."""
        weight: torch.Tensor = self.base.weight
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out)."""
        linear = nn.functional.linear
        added = linear(linear(x.to(self.down.dtype), self.down), self.up)
        result: torch.Tensor = self.base(x) + added.to(x.dtype) * self.factor
        return result


@torch.no_grad()
def fuse_layer(pair: Pair, linear: nn.Linear) -> nn.Linear:
    """Make a layer like `linear`, and on its device, with the pair in its weight."""
    weight = linear.weight
    delta = pair.to(weight.device, torch.float32).delta()
    fused = nn.Linear(
        linear.in_features, linear.out_features, bias=False, device="meta", dtype=weight.dtype
    )
    total = weight.float() + delta
    fused.weight = nn.Parameter(total.to(weight.dtype), requires_grad=False)
    fused.bias = linear.bias
    return fused
