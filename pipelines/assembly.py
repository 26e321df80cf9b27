"""From the trees of a transformer to those that make images: with their kernels, compiled."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import nn

from pipelines.adapters import Adapted
from pipelines.attention import choose_attention, use_attention
from pipelines.denoiser import Denoiser
from pipelines.errors import LoraError
from pipelines.lora_file import Lora, find_widths, read_lora
from pipelines.lora_shelf import LoraShelf
from pipelines.plan import Layout
from pipelines.streaming import Slots, stream
from pipelines.transformers import Transformers, Tree
from pipelines.trees import TreeBuilder, Trees
from pipelines.types import TURBO_LORA_PATH, LoadOptions, Precision
from pipelines.variants import BLOCK_LISTS

log = structlog.get_logger(__name__)

MOST_GRAPHS = 32
"""Two kinds of block in up to five trees, and a few more of each for sizes that torch takes for
special. torch's own limit is 8, beyond which it raises."""


@dataclass(frozen=True, slots=True)
class FlashLora:
    """The LoRA of the flash endpoints with its name, or why there is none."""

    name: str
    lora: Lora | None = None
    problem: str = ""


NO_FLASH = FlashLora("none", problem="There is no flash LoRA for this model")
"""Of a model that nobody made one for: nothing is missing."""


def find_flash_lora(transformer: nn.Module, options: LoadOptions) -> FlashLora:
    """Read the operator's LoRA; of the transformer that it is for only names and shapes are asked.

    One that cannot be used takes nothing else along: why is in the log, and told to whoever asks
    for flash.
    """
    path = options.flash_lora or options.model / TURBO_LORA_PATH
    # Callers are told the name alone, and in a header, which cannot hold every character.
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", path.stem)
    if not path.is_file():
        log.warning("no flash LoRA", path=str(path))
        return FlashLora(name, problem=f"This server has no flash LoRA: {path.name} is missing")
    try:
        lora = read_lora(path, transformer)
        log.info("flash LoRA", path=str(path), sha256=lora.sha256, layers=len(lora.pairs))
    except LoraError as error:
        log.error("the flash LoRA cannot be used", path=str(path), reason=str(error))
        return FlashLora(name, problem=f"This server's flash LoRA {path.name} cannot be used")
    return FlashLora(name, lora)


def assemble(
    transformer: Any, device: torch.device, options: LoadOptions, layout: Layout
) -> Transformers:
    """Make all transformers of a layout from one that is on the device already."""
    flash = find_flash_lora(transformer, options)
    builder = TreeBuilder(transformer, device, layout, flash.lora)
    for name, parameter in transformer.named_parameters():
        builder.take(name, parameter)
    return equip(builder.finish(), device, options, layout, flash, Slots(device))


def equip(
    trees: Trees,
    device: torch.device,
    options: LoadOptions,
    layout: Layout,
    flash: FlashLora,
    slots: Slots,
) -> Transformers:
    """Give trees their attention kernel, compile them, and let streamed blocks pass through slots.

    Without the flash LoRA, or with one that cannot be used, everything else works.
    """
    compiled = is_compiled(options, device)
    exact, fast, with_lora = trees
    base = fast if exact is None else exact
    kernel = _use_best_attention(base, device, options)
    exact_or_fast = layout.fast or layout.exact_precision

    def make_ready(root: Any) -> Any:
        if compiled:
            compile_blocks(root)
        return stream(root, _block_names(root), slots) if layout.blocks == "streamed" else root

    def make_tree(root: Any | None, precision: Precision, lora: str | None = None) -> Tree | None:
        if root is None:
            return None
        # Before the base is made ready: a copy of compiled blocks would run those of the base.
        adapted = None if lora else Adapted(root, make_ready)
        return Tree(
            denoiser=Denoiser(make_ready(root)),
            precision=precision,
            attention=kernel,
            compiled=compiled,
            lora=lora or "none",
            adapted=adapted,
        )

    return Transformers(
        exact=make_tree(exact, layout.exact_precision),
        fast=make_tree(fast, exact_or_fast),
        flash=make_tree(with_lora, exact_or_fast, flash.name),
        flash_problem=flash.problem,
        flash_fallback=options.flash_fallback,
        flash_schedule=options.flash_schedule,
        loras=LoraShelf(
            find_widths(base), device, base.x_embedder.weight.dtype, options.lora_cache_bytes
        ),
    )


def is_compiled(options: LoadOptions, device: torch.device) -> bool:
    """Whether the operator wants compiled kernels on this device."""
    return options.compile == "on" or (options.compile == "auto" and device.type == "cuda")


def compile_blocks(transformer: Any) -> None:
    """Compile every block in place; the first run of each kind of block takes the time for it.

    One graph for each kind serves all blocks and all sizes of pictures (regional compilation,
    https://docs.pytorch.org/tutorials/recipes/regional_compilation.html). Norms, rotary embedding,
    SwiGLU and modulation become single kernels there. The trees of one process are kinds of their
    own, and torch counts the graphs of all of them together.
    """
    torch._dynamo.config.recompile_limit = MOST_GRAPHS  # noqa: SLF001  (it has no other name)
    for name in _block_names(transformer):
        transformer.get_submodule(name).compile(fullgraph=True, dynamic=True)


def keep_compiled_kernels(folder: Path) -> None:
    """Let compiled kernels be kept in a folder and found again at the next start.

    They are told apart by what they were compiled from and for; versions of torch and kinds of
    device by folders. Has an effect only before the first compilation of the process.
    """
    kind = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "cpu"
    place = folder / f"torch-{torch.__version__}-{kind}"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(place / "triton")


def _block_names(transformer: Any) -> list[str]:
    """List the blocks in the order in which they run."""
    return [
        f"{name}.{number}"
        for name in BLOCK_LISTS
        for number in range(len(getattr(transformer, name)))
    ]


def _use_best_attention(transformer: Any, device: torch.device, options: LoadOptions) -> str:
    """Without compilation torch's own is kept, for images that are diffusers' to the bit."""
    special = is_compiled(options, device)
    asked = options.attention if special or options.attention != "auto" else "native"
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    kernel = use_attention(transformer, choose_attention(asked, capability), device)
    log.info("attention", kernel=kernel, asked=options.attention)
    return kernel
