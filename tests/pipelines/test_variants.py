"""Transformers that share what they have in common: nothing of one shows in another."""

import pytest
import torch
from torch import nn

from pipelines.variants import derive, find_block_linears


class Tree(nn.Module):
    """Two blocks and an end, named as in the real transformer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer_blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)))
            for _ in range(2)
        )
        self.proj_out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run everything."""
        for block in self.transformer_blocks:
            x = block(x)
        end: torch.Tensor = self.proj_out(x)
        return end


def test_only_what_is_replaced_differs() -> None:
    """The first tree computes as before; the second shares every tensor that it has in common."""
    tree, x = Tree(), torch.ones(1, 4)
    before = tree(x)
    name = "transformer_blocks.1.1.1"
    other = derive(tree, {name: lambda linear: nn.Linear(linear.in_features, 4)})
    assert torch.equal(tree(x), before)
    assert not torch.equal(other(x), before)
    kept, theirs = dict(tree.named_parameters()), dict(other.named_parameters())
    assert kept.keys() == theirs.keys()
    differ = {key for key in kept if kept[key] is not theirs[key]}
    assert differ == {f"{name}.weight", f"{name}.bias"}
    assert other.transformer_blocks[0] is tree.transformer_blocks[0]
    assert other.transformer_blocks[1] is not tree.transformer_blocks[1]


def test_the_original_module_is_handed_to_what_replaces_it() -> None:
    """So that a layer can be made from the layer that it stands for, or around it."""
    tree = Tree()
    other = derive(tree, {"proj_out": nn.Sequential})
    assert other.get_submodule("proj_out.0") is tree.proj_out


def test_a_name_that_is_not_there_is_told() -> None:
    """A LoRA for another architecture cannot be taken for one that changes nothing."""
    with pytest.raises(AttributeError, match="7"):
        derive(Tree(), {"transformer_blocks.7.0": nn.Sequential})


def test_only_the_blocks_linear_layers_are_found() -> None:
    """What stands before and after the blocks is small, and needs its precision."""
    assert list(find_block_linears(Tree())) == [
        f"transformer_blocks.{block}.{layer}" for block in (0, 1) for layer in ("0", "1.1")
    ]
