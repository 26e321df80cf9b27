"""From one transformer's weights, as they come, to the trees that a layout has."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.lora import attach, fuse_layer
from pipelines.lora_file import Lora
from pipelines.lora_parts import Pair
from pipelines.plan import Layout
from pipelines.quantisation import LAYERS
from pipelines.streaming import to_host
from pipelines.variants import derive, find_block_linears
from pipelines.weights import assign

Trees = tuple[Any, Any, Any]
"""The exact tree, the one with quantised blocks, the one for flash; None for each that is not."""


class TreeBuilder:
    """Makes trees from weights that come one at a time, in any order.

    `model` may be on "meta". Memory never holds more than the result and the weights under way:
    exact weights of blocks are kept only for an exact tree. Streamed blocks' weights go to main
    memory, everything else stays on the device.
    """

    def __init__(
        self, model: Any, device: torch.device, layout: Layout, lora: Lora | None = None
    ) -> None:
        self._model = model
        self._device = device
        self._layout = layout
        self._lora = lora if layout.flash else None
        self._linears = find_block_linears(model)
        self._quantised: dict[str, nn.Module] = {}
        self._fused: dict[str, nn.Module] = {}

    @torch.no_grad()
    def take(self, name: str, weight: Tensor) -> None:
        """Take one of the checkpoint's tensors, on the device; several threads may do so."""
        layer, _, kind = name.rpartition(".")
        is_linear = kind == "weight" and layer in self._linears
        fast = self._layout.fast if is_linear else None
        weight = weight.to(getattr(torch, self._layout.exact_precision))
        if fast:
            linear = _with_weight(self._linears[layer], weight)
            self._quantised[layer] = self._settle(LAYERS[fast](linear))
        if kind == "weight" and (pair := self._pair_to_fuse(layer)):
            fused = fuse_layer(pair, _with_weight(self._model.get_submodule(layer), weight))
            self._fused[layer] = LAYERS[fast](fused) if fast else fused
        if self._layout.exact or not is_linear:
            assign(self._model, name, self._settle_tensor(weight) if is_linear else weight)

    def finish(self) -> Trees:
        """Make the trees of what was taken."""
        exact = self._model if self._layout.exact else None
        fast = _replace(self._model, self._quantised) if self._layout.fast else None
        base: Any = exact if fast is None else fast
        if self._lora is None:
            return exact, fast, None
        if self._layout.flash == "attached":
            return exact, fast, attach(base, self._lora, self._device)
        for name, layer in self._fused.items():
            if isinstance(layer, nn.Linear):
                layer.bias = self._model.get_submodule(name).bias
        return exact, fast, _replace(base, self._fused)

    def _pair_to_fuse(self, layer: str) -> Pair | None:
        is_fused = self._lora is not None and self._layout.flash == "fused"
        return self._lora.pairs.get(layer) if self._lora and is_fused else None

    def _settle(self, layer: nn.Module) -> nn.Module:
        for name, tensor in list(layer.named_buffers()):
            layer.register_buffer(name, self._settle_tensor(tensor))
        return layer

    def _settle_tensor(self, tensor: Tensor) -> Tensor:
        return to_host(tensor) if self._layout.blocks == "streamed" else tensor


def _with_weight(like: nn.Linear, weight: Tensor) -> nn.Linear:
    """Return a layer like this one with another weight."""
    linear = copy.copy(like)
    parameter = nn.Parameter(weight, requires_grad=False)
    linear.__dict__["_parameters"] = {**like.__dict__["_parameters"], "weight": parameter}
    return linear


def _replace(root: Any, layers: dict[str, nn.Module]) -> Any:
    def give(layer: nn.Module) -> Callable[[Any], nn.Module]:
        return lambda _replaced: layer

    return derive(root, {name: give(layer) for name, layer in layers.items()})
