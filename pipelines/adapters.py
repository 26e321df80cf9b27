"""LoRAs of callers: put on a transformer for one request, beside its weights, and off again.

A tree that takes them is one of its own, made of the base's tensors, so that the base cannot change
by a bit. Its layers ask at every call what is put on: compiled code does that through an operator
which the compiler does not look into, so that one graph serves every set of LoRAs, of any rank and
kind, and none ever waits for a compilation. Layers without an addition cost a call.
"""

import itertools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.denoiser import Denoiser
from pipelines.lora_file import Lora, find_widths
from pipelines.lora_parts import Addition
from pipelines.variants import derive

Use = tuple[Lora, float]
"""A LoRA on the device, and how strongly it is put on."""

_NUMBERS = itertools.count()
_LAYERS: "weakref.WeakValueDictionary[int, AdaptedLinear]" = weakref.WeakValueDictionary()
"""The operator's way from a number, which is all that it can be given, to the layer."""


class AdaptedLinear(nn.Module):
    """A linear layer, of any kind, with what is put on it: base(x) + sum(scale * addition(x))."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.put_on: tuple[tuple[Addition, float], ...] = ()
        # No buffer: that would be streamed, and belong to the model's weights.
        self.number = torch.tensor(next(_NUMBERS))
        _LAYERS[int(self.number)] = self

    @property
    def weight(self) -> Tensor:
        """The base's own weight: those who ask a layer for its type or device ask this."""
        weight: Tensor = self.base.weight
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        result: Tensor = self.base(x)
        if torch.compiler.is_compiling():
            torch.ops.flux2_serve.add_put_on(result, x, self.number)
        else:
            self.add_put_on(result, x)
        return result

    def add_put_on(self, result: Tensor, x: Tensor) -> None:
        """Add to the base's `result` (..., out), in place, what is put on, in its order."""
        rows, tokens = result.view(-1, result.shape[-1]), x.reshape(-1, x.shape[-1])
        for addition, scale in self.put_on:
            addition.add_to(rows, tokens, scale)


@torch.library.custom_op("flux2_serve::add_put_on", mutates_args={"result"})
def _add_put_on(result: Tensor, x: Tensor, number: Tensor) -> None:
    _LAYERS[int(number)].add_put_on(result, x)


@_add_put_on.register_fake
def _(_result: Tensor, _x: Tensor, _number: Tensor) -> None:
    """Tell the compiler all that it must know: no new tensor comes of it."""


class Adapted:
    """A tree like another one, but that takes LoRAs. One request at a time puts on what it wants.

    `make_ready` makes of it what is called: it compiles it, or lets it be streamed.
    """

    def __init__(self, root: Any, make_ready: Callable[[Any], Any]) -> None:
        tree = derive(root, dict.fromkeys(find_widths(root), AdaptedLinear))
        self._layers = {
            name: module
            for name, module in tree.named_modules()
            if isinstance(module, AdaptedLinear)
        }
        self.denoiser = Denoiser(make_ready(tree))

    def put_on(self, uses: Iterable[Use]) -> None:
        """Put on these, in this order, and nothing else any longer."""
        by_layer: dict[str, list[tuple[Addition, float]]] = {}
        for lora, scale in uses:
            for name, addition in lora.additions.items():
                by_layer.setdefault(name, []).append((addition, scale))
        for name, layer in self._layers.items():
            layer.put_on = tuple(by_layer.get(name, ()))
