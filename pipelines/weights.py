"""Weights from safetensors files, each tensor straight to where it is to lie, several at a time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipelines.errors import ModelNotFoundError

READERS = 4
"""Threads that read: enough to keep a fast disk and the bus busy, and with a tensor of the real
model each, 0.5 GB, a small part of the card."""

CHUNK_TENSORS = 8
"""How many tensors a thread reads before it takes the next turn."""

Take = Callable[[str, Tensor], None]
"""What is done with a tensor and its name; called from several threads at a time."""


def read_tensors(
    paths: Sequence[Path],
    device: torch.device,
    take: Take,
    on_fraction: Callable[[float], None] = lambda _fraction: None,
) -> None:
    """Read every tensor of the files to the device and hand it over, in no particular order.

    `on_fraction` hears how much has been read, from 0 to 1. On a CPU tensors are views of the
    mapped file. Raises `ModelNotFoundError` for a file that cannot be read, and what `take` raises.
    """
    chunks = [chunk for path in paths for chunk in _split(path)]
    lock, done = threading.Lock(), 0

    @torch.no_grad()
    def read(chunk: tuple[Path, Sequence[str]]) -> None:
        nonlocal done
        path, names = chunk
        with _open(path, device) as file:
            for name in names:
                take(name, file.get_tensor(name))
        with lock:
            done += 1
            on_fraction(done / len(chunks))

    with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as readers:
        for _ in readers.map(read, chunks):
            pass


def assign(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of the parameter or buffer of this name, in that one's type.

    Raises `ModelNotFoundError` if there is no such place, or one of another shape.
    """
    module_name, _, leaf = name.rpartition(".")
    try:
        module = root.get_submodule(module_name)
        is_buffer = leaf in dict(module.named_buffers(recurse=False))
        place = module.get_buffer(leaf) if is_buffer else module.get_parameter(leaf)
    except AttributeError:
        raise ModelNotFoundError(f"{name} has no place in this model") from None
    if place.shape != tensor.shape:
        shapes = f"{tuple(tensor.shape)} instead of {tuple(place.shape)}"
        raise ModelNotFoundError(f"{name} is {shapes}")
    if place is tensor:
        return
    tensor = tensor.to(place.dtype)
    if isinstance(place, nn.Parameter):
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        module.register_buffer(leaf, tensor)


def check_whole(root: nn.Module) -> None:
    """Check that nothing of a model built on "meta" is still without weights.

    Raises `ModelNotFoundError`, which names what is.
    """
    missing = [name for name, tensor in root.state_dict().items() if tensor.is_meta]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelNotFoundError(f"the weights lack {', '.join(missing[:3])}{more}")


def _split(path: Path) -> Iterator[tuple[Path, Sequence[str]]]:
    with _open(path, torch.device("cpu")) as file:
        names = list(file.keys())
    for first in range(0, len(names), CHUNK_TENSORS):
        yield path, names[first : first + CHUNK_TENSORS]


def _open(path: Path, device: torch.device) -> Any:
    try:
        return safe_open(path, framework="pt", device=str(device))
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error}") from error
