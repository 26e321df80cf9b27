"""Several transformers that share all weights in which they do not differ.

A level of acceleration or a LoRA is not switched on and off in one transformer: it is a second
module tree beside the first, made of the same tensors but for the layers that it replaces. So
nothing can leak from one request into the next, and what is common takes memory once.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)

BLOCK_LISTS = ("transformer_blocks", "single_transformer_blocks")
"""Where `Flux2Transformer2DModel` keeps its 8 + 48 blocks, with 97 % of its parameters."""


def find_block_linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers inside the blocks, by their names in the transformer."""
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.split(".", 1)[0] in BLOCK_LISTS
    }


def derive(root: Module, replace: Mapping[str, Callable[[Any], nn.Module]]) -> Module:
    """Make a tree like `root` in which the modules named in `replace` are others.

    Each is made by its function from the module that it stands for. Modules on the way to a
    replaced one are new objects, all others are shared; `root` stays as it is. Raises
    `AttributeError` for a name that `root` does not have.
    """
    derived = _fork(root)
    forked: dict[str, nn.Module] = {"": derived}
    for name, make in replace.items():
        parent_name, _, child = name.rpartition(".")
        parent = _fork_down_to(parent_name, forked)
        parent.add_module(child, make(parent.get_submodule(child)))
    return derived


def _fork_down_to(name: str, forked: dict[str, nn.Module]) -> nn.Module:
    """Return the derived tree's module of this name, forked if it is still shared."""
    if name not in forked:
        parent_name, _, child = name.rpartition(".")
        parent = _fork_down_to(parent_name, forked)
        forked[name] = _fork(parent.get_submodule(child))
        parent.add_module(child, forked[name])
    return forked[name]


def _fork(module: Module) -> Module:
    """Copy a module object without its children and tensors, which stay the same objects."""
    fork = copy.copy(module)
    fork.__dict__["_modules"] = dict(fork.named_children())
    return fork
