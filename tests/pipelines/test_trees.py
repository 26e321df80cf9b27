"""Trees made of weights as they come: the same as those made of a whole transformer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.folder import list_weight_files
from pipelines.lora import attach, fuse
from pipelines.lora_file import Lora, read_lora
from pipelines.plan import Layout
from pipelines.quantisation import quantise_blocks
from pipelines.trees import TreeBuilder, Trees
from pipelines.types import TURBO_LORA_PATH, Precision
from pipelines.weights import check_whole, read_tensors

CPU = torch.device("cpu")


def build(oracle: Any, folder: Path, lora: Lora | None = None, **layout: Any) -> Trees:
    """Build the trees of a layout from the files of a model folder."""
    with torch.device("meta"):
        model = type(oracle.transformer).from_config(oracle.transformer.config)
    wanted = Layout(exact_precision=Precision.FLOAT32, **layout)
    builder = TreeBuilder(model, CPU, wanted, lora)
    read_tensors(list_weight_files(folder, "transformer"), CPU, builder.take)
    return builder.finish()


@pytest.fixture(scope="module")
def lora(oracle: Any, demo_model: Path) -> Lora:
    """Return the eight-step LoRA of the tiny checkpoint."""
    return read_lora(demo_model / TURBO_LORA_PATH, oracle.transformer)


def assert_same(tree: Any, expected: Any) -> None:
    """Both have the same tensors under the same names, bit for bit."""
    tensors, others = tree.state_dict(), expected.state_dict()
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype is others[name].dtype
        assert torch.equal(tensor.view(torch.uint8), others[name].view(torch.uint8)), name


def pointers(tree: Any) -> set[int]:
    """Return where the tree's tensors lie."""
    return {tensor.data_ptr() for tensor in tree.state_dict().values()}


def test_the_exact_tree_is_the_checkpoint(oracle: Any, demo_model: Path) -> None:
    """As diffusers loads it."""
    exact, fast, flash = build(oracle, demo_model, exact=True)
    assert_same(exact, oracle.transformer)
    assert fast is None
    assert flash is None


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])
def test_the_fast_tree_shares_what_is_not_quantised(
    oracle: Any, demo_model: Path, precision: Precision
) -> None:
    """And has quantised blocks as they are made of the whole transformer."""
    exact, fast, _ = build(oracle, demo_model, exact=True, fast=precision)
    assert_same(exact, oracle.transformer)
    assert_same(fast, quantise_blocks(oracle.transformer, precision))
    around = {name for name, _ in exact.named_parameters() if "blocks" not in name}
    assert around
    for name in around:
        assert exact.get_parameter(name) is fast.get_parameter(name)


def test_exact_blocks_need_not_be_kept(oracle: Any, demo_model: Path) -> None:
    """The fast tree is whole without them."""
    exact, fast, _ = build(oracle, demo_model, exact=False, fast=Precision.FP8)
    assert exact is None
    check_whole(fast)
    assert_same(fast, quantise_blocks(oracle.transformer, Precision.FP8))


def test_a_lora_is_fused_before_it_is_quantised(oracle: Any, demo_model: Path, lora: Lora) -> None:
    """So that what it adds is not rounded away, and without exact blocks at hand."""
    _, fast, flash = build(oracle, demo_model, lora, exact=False, fast=Precision.FP8, flash="fused")
    assert_same(flash, quantise_blocks(fuse(oracle.transformer, lora), Precision.FP8))
    assert_same(fast, quantise_blocks(oracle.transformer, Precision.FP8))
    changed = {f"{name}.weight" for name in lora.pairs}
    untouched = [name for name in flash.state_dict() if name.removesuffix("_scale") not in changed]
    assert untouched
    for name in untouched:
        assert flash.state_dict()[name].data_ptr() == fast.state_dict()[name].data_ptr()


def test_a_lora_is_fused_into_exact_weights(oracle: Any, demo_model: Path, lora: Lora) -> None:
    """Where nothing is quantised."""
    exact, _, flash = build(oracle, demo_model, lora, exact=True, flash="fused")
    assert_same(flash, fuse(oracle.transformer, lora))
    assert_same(exact, oracle.transformer)


@pytest.mark.parametrize("fast", [None, Precision.FP8])
def test_a_lora_is_attached(
    oracle: Any, demo_model: Path, lora: Lora, fast: Precision | None
) -> None:
    """Beside weights that are shared with the other tree."""
    trees = build(oracle, demo_model, lora, exact=fast is None, fast=fast, flash="attached")
    base = trees[0] if fast is None else trees[1]
    assert_same(trees[2], attach(base, lora))
    assert pointers(base) <= pointers(trees[2])


def test_without_a_layout_for_flash_there_is_none(
    oracle: Any, demo_model: Path, lora: Lora
) -> None:
    """Although there is a LoRA."""
    assert build(oracle, demo_model, lora, exact=True)[2] is None


def test_streamed_blocks_lie_in_memory_of_their_own(oracle: Any, demo_model: Path) -> None:
    """No longer in the file, from which only what stays on the device is taken as it is."""
    kept: dict[str, Tensor] = {}
    with torch.device("meta"):
        model = type(oracle.transformer).from_config(oracle.transformer.config)
    layout = Layout(
        exact=True, exact_precision=Precision.FLOAT32, fast=Precision.FP8, blocks="streamed"
    )
    builder = TreeBuilder(model, CPU, layout)

    def take(name: str, tensor: Tensor) -> None:
        kept[name] = tensor
        builder.take(name, tensor)

    read_tensors(list_weight_files(demo_model, "transformer"), CPU, take)
    exact, fast, _ = builder.finish()
    assert_same(exact, oracle.transformer)
    assert_same(fast, quantise_blocks(oracle.transformer, Precision.FP8))
    for name, tensor in exact.state_dict().items():
        is_block_linear = "blocks" in name and ".norm_" not in name
        assert (tensor.data_ptr() == kept[name].data_ptr()) != is_block_linear
