"""Sets of 8-bit weights on disk: half to read at each start, and no exact weights to quantise.

A set lies in the model folder, in `quantised/<precision>/`: the transformer with quantised blocks
as diffusers writes models, and a manifest that says what it was made of. A set that is not whole,
or of other weights than those beside it, is not used.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import ModelNotFoundError
from pipelines.folder import list_weight_files
from pipelines.plan import Layout
from pipelines.quantisation import quantise_blocks
from pipelines.streaming import to_host
from pipelines.trees import TreeBuilder
from pipelines.types import Precision
from pipelines.variants import find_block_linears
from pipelines.weights import assign, check_whole, read_tensors

FOLDER = Path("quantised")
MANIFEST = "set.json"
FORMAT = 1
"""Of the set: another one is not read."""

WINDOWS, WINDOW_BYTES = 64, 65536
"""What of a file is read to tell it from others: enough for any training step to show."""


def fingerprint(model: Path) -> str:
    """Tell the transformer's weights from others, by names, sizes and samples of their files."""
    digest = hashlib.sha256()
    for path in list_weight_files(model, "transformer"):
        size_bytes = path.stat().st_size
        digest.update(f"{path.name} {size_bytes}\n".encode())
        with path.open("rb") as file:
            for window in range(WINDOWS):
                file.seek(max(0, size_bytes - WINDOW_BYTES) * window // (WINDOWS - 1))
                digest.update(file.read(WINDOW_BYTES))
    return digest.hexdigest()


def write_set(
    transformer: Any,
    model: Path,
    precision: Precision,
    exact_precision: Precision,
    on_fraction: Callable[[float], None],
) -> Path:
    """Quantise the weights of a model folder's transformer, given on "meta"; return the set.

    Takes as much main memory as the set takes on the disk. The set appears whole or not at all, in
    place of an older one. Raises `ModelNotFoundError` for weights that cannot be read,
    `BlockingIOError` while another process writes.
    """
    source = fingerprint(model)
    layout = Layout(exact=False, exact_precision=exact_precision, fast=precision)
    cpu = torch.device("cpu")
    torch.nn.Module.to(transformer, getattr(torch, exact_precision))
    builder = TreeBuilder(transformer, cpu, layout)
    read_tensors(list_weight_files(model, "transformer"), cpu, builder.take, on_fraction)
    _, fast, _ = builder.finish()
    check_whole(fast)
    folder = model / FOLDER / precision.value
    with _whole_folder(folder) as unfinished:
        fast.save_pretrained(unfinished, max_shard_size="5GB")
        paths = sorted(unfinished.iterdir())
        for path in paths:
            path.chmod(0o644)  # safetensors keeps its files from other users, such as a server's
        manifest = {
            **_describe(precision, exact_precision, source),
            "files": {path.name: path.stat().st_size for path in paths},
        }
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return folder


def check_set(model: Path, precision: Precision, exact_precision: Precision) -> Path:
    """Return the set of this precision, made of the model folder's weights as they are.

    Raises `ModelNotFoundError`, which says why there is none.
    """
    folder = model / FOLDER / precision.value
    path = folder / MANIFEST
    if not path.is_file():
        raise ModelNotFoundError(f"{folder}: no set of quantised weights")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): int(size) for name, size in manifest["files"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelNotFoundError(f"{path}: not a manifest: {error!r}") from error
    for key, value in _describe(precision, exact_precision, fingerprint(model)).items():
        if manifest.get(key) != value:
            raise ModelNotFoundError(f"{folder}: stale, made for {key} {manifest.get(key)}")
    for name, size_bytes in files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size_bytes:
            raise ModelNotFoundError(f"{folder / name}: missing or cut short")
    return folder


def read_set(
    transformer: Any,
    folder: Path,
    device: torch.device,
    layout: Layout,
    on_fraction: Callable[[float], None],
) -> Any:
    """Read a set as the layout's fast tree of the transformer, which is on "meta".

    Bit for bit what `TreeBuilder` makes of the weights that the set was made of.
    """
    if layout.fast is None:
        raise ValueError("this layout has no quantised blocks")
    linears = find_block_linears(transformer)
    tree = quantise_blocks(transformer, layout.fast)

    def take(name: str, tensor: Tensor) -> None:
        is_hosted = layout.blocks == "streamed" and name.rpartition(".")[0] in linears
        assign(tree, name, to_host(tensor) if is_hosted else tensor)

    read_tensors(sorted(folder.glob("*.safetensors")), device, take, on_fraction)
    check_whole(tree)
    return tree


def _describe(precision: Precision, exact_precision: Precision, source: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "precision": precision.value,
        "exact_precision": exact_precision.value,
        "source": source,
    }


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside, which takes the folder's place if the block ends well."""
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _empty(partial)  # of what a process left that was killed
        yield partial
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
        if old.exists():
            _empty(old)
            old.rmdir()
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
