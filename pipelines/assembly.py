"""From one loaded transformer to those that a pipeline needs: quantised, with LoRA, compiled."""

import os
import re
from pathlib import Path
from typing import Any

import structlog
import torch

from pipelines.attention import choose_attention, use_attention
from pipelines.denoiser import Denoiser
from pipelines.errors import LoraError
from pipelines.lora import attach, fuse, read_lora
from pipelines.quantisation import choose_fast_precision, quantise_blocks
from pipelines.transformers import Transformers, Tree
from pipelines.types import TURBO_LORA_PATH, LoadOptions, Precision
from pipelines.variants import BLOCK_LISTS, find_block_linears

log = structlog.get_logger(__name__)

ROOM_BYTES = 12_000_000_000
"""What a picture needs beside the weights: one of 2048x2048 with references. Estimated from
published figures, 6.5 GB at 17,000 tokens (InvokeAI PR 9519); not measured here yet."""


def assemble(transformer: Any, device: torch.device, options: LoadOptions) -> Transformers:
    """Make all trees of the transformer, which is on the device already.

    Without the flash LoRA, or with one that cannot be used, everything else works: why there is
    none is in the log, and told to whoever asks for flash.
    """
    compiled = options.compile == "on" or (options.compile == "auto" and device.type == "cuda")
    kernel = _use_best_attention(transformer, device, options, special=compiled)
    exact_precision = Precision(str(transformer.dtype).removeprefix("torch."))

    def make_tree(root: Any, precision: Precision, lora: str = "none") -> Tree:
        if compiled:
            compile_blocks(root)
        return Tree(
            denoiser=Denoiser(root),
            precision=precision,
            attention=kernel,
            compiled=compiled,
            lora=lora,
        )

    fast_precision = _affordable_precision(transformer, device)
    fast = quantise_blocks(transformer, fast_precision) if fast_precision else None
    flash, problem = _make_flash(transformer, fast, device, options)
    return Transformers(
        exact=make_tree(transformer, exact_precision),
        fast=make_tree(fast, fast_precision) if fast and fast_precision else None,
        flash=make_tree(flash, fast_precision or exact_precision, _name_of(_flash_path(options)))
        if flash is not None
        else None,
        flash_problem=problem,
        flash_fallback=options.flash_fallback,
        flash_schedule=options.flash_schedule,
    )


def compile_blocks(transformer: Any) -> None:
    """Compile every block in place; the first run of each kind of block takes the time for it.

    One graph for each kind serves all blocks and all sizes of pictures (regional compilation,
    https://docs.pytorch.org/tutorials/recipes/regional_compilation.html). Norms, rotary embedding,
    SwiGLU and modulation become single kernels there.
    """
    for name in BLOCK_LISTS:
        for block in getattr(transformer, name):
            block.compile(fullgraph=True, dynamic=True)


def keep_compiled_kernels(folder: Path) -> None:
    """Let compiled kernels be kept in a folder and found again at the next start.

    They are told apart by what they were compiled from and for; versions of torch and kinds of
    device by folders. Has an effect only before the first compilation of the process.
    """
    kind = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "cpu"
    place = folder / f"torch-{torch.__version__}-{kind}"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(place / "triton")


def _use_best_attention(
    transformer: Any, device: torch.device, options: LoadOptions, *, special: bool
) -> str:
    """Without compilation torch's own is kept, for images that are diffusers' to the bit."""
    asked = options.attention if special or options.attention != "auto" else "native"
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    kernel = use_attention(transformer, choose_attention(asked, capability), device)
    log.info("attention", kernel=kernel, asked=options.attention)
    return kernel


def _affordable_precision(transformer: Any, device: torch.device) -> Precision | None:
    """Choose what to quantise the blocks to, or None where a second set has no room."""
    precision = choose_fast_precision(device)
    if precision is None:
        return None
    parameters = sum(linear.weight.numel() for linear in find_block_linears(transformer).values())
    if _has_room(device, parameters):  # a byte for each
        return precision
    log.warning("no room for quantised blocks: every level computes as none does")
    return None


def _has_room(device: torch.device, wanted_bytes: int) -> bool:
    """Whether a card keeps `ROOM_BYTES` free beside this; main memory is taken to be enough."""
    if device.type != "cuda":
        return True
    torch.cuda.empty_cache()  # what torch only keeps for later is free
    free_bytes, _ = torch.cuda.mem_get_info(device)
    log.info("memory", free_bytes=free_bytes, wanted_bytes=wanted_bytes, room_bytes=ROOM_BYTES)
    return free_bytes - wanted_bytes >= ROOM_BYTES


def _flash_path(options: LoadOptions) -> Path:
    return options.flash_lora or options.model / TURBO_LORA_PATH


def _name_of(path: Path) -> str:
    """Say a file's name in the characters that a header's value may have."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", path.stem)


def _make_flash(
    transformer: Any, fast: Any | None, device: torch.device, options: LoadOptions
) -> tuple[Any | None, str]:
    """Return the transformer with the flash LoRA in it, or None and why."""
    path = _flash_path(options)  # of which callers are told the name alone
    if not path.is_file():
        log.warning("no flash LoRA", path=str(path))
        return None, f"This server has no flash LoRA: {path.name} is missing"
    try:
        lora = read_lora(path, transformer)
    except LoraError as error:
        log.error("the flash LoRA cannot be used", path=str(path), reason=str(error))
        return None, f"This server's flash LoRA {path.name} cannot be used"
    log.info("flash LoRA", path=str(path), sha256=lora.sha256)
    if fast is not None:
        # Added to rounded weights the pairs would be rounded away.
        return attach(fast, lora), ""
    copied_bytes = sum(transformer.get_submodule(name).weight.nbytes for name in lora.pairs)
    return (fuse if _has_room(device, copied_bytes) else attach)(transformer, lora), ""
