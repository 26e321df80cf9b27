"""LoRA files for the transformer: checked by their headers, read, and built into a transformer.

A LoRA (https://arxiv.org/abs/2106.09685) adds `up @ down` to the weights of some linear layers.
Only safetensors are read: a header of JSON and raw numbers, nothing that could run code
(https://github.com/huggingface/safetensors#format). Keys are those of fal's Turbo file, which are
diffusers' names of the layers. diffusers' converters from other names are not used: kohya's leaves
out keys that it does not know, BFL's takes `final_layer.adaLN_modulation.1` halves swapped.
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import nn

from pipelines.errors import LoraError
from pipelines.variants import Module, derive

MOST_HEADER_BYTES = 100_000_000
"""safetensors' own limit."""

DTYPES = ("F32", "F16", "BF16")

_SAVED_BY_DIFFUSERS = "lora_adapter_metadata"
_NOT_AS_EXPECTED = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # types and shapes by key

_KEY = re.compile(
    r"(?:transformer\.|diffusion_model\.)?(?P<layer>.+)\.(?:lora_(?P<side>[AB])\.weight|(?P<alpha>alpha))"
)


@dataclass(frozen=True, slots=True)
class Pair:
    """What is added to one layer's weight: factor * up (out, r) @ down (r, in)."""

    down: torch.Tensor
    up: torch.Tensor
    factor: float


@dataclass(frozen=True, slots=True)
class Lora:
    """A whole file, on the CPU: pairs by the layers' names, and the hash of its content."""

    pairs: Mapping[str, Pair]
    sha256: str


def read_lora(path: Path, transformer: nn.Module) -> Lora:
    """Read a LoRA that fits the transformer.

    Raises `LoraError`, before any number is read, for a file that is no whole safetensors file, or
    has keys, halves, types or shapes that the transformer has no place for.
    """
    try:
        with path.open("rb") as file:
            shapes, metadata = _read_header(file, path)
            layers = _group(shapes, path)
            _check(layers, shapes, transformer, path)
            scale = _read_scale(metadata, path)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise LoraError(f"{path}: cannot be read: {error}") from error
    pairs = {name: _make_pair(keys, tensors, scale) for name, keys in layers.items()}
    for name, pair in pairs.items():
        if not math.isfinite(pair.factor):
            raise LoraError(f"{path}: the alpha of {name} is not a finite number")
    return Lora(pairs, digest)


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
    down, up = (part.to(weight.device).float() for part in (pair.down, pair.up))
    fused = nn.Linear(
        linear.in_features, linear.out_features, bias=False, device="meta", dtype=weight.dtype
    )
    total = weight.float() + (up @ down) * pair.factor
    fused.weight = nn.Parameter(total.to(weight.dtype), requires_grad=False)
    fused.bias = linear.bias
    return fused


def _read_header(file: BinaryIO, path: Path) -> tuple[Shapes, Mapping[str, str]]:
    """Return what the header says of the tensors, and its metadata."""
    size_bytes = file.seek(0, 2)
    file.seek(0)
    try:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > min(size_bytes - 8, MOST_HEADER_BYTES):
            raise LoraError(f"{path}: not a whole safetensors file")
        header = json.loads(file.read(header_bytes))
        metadata = dict(header.pop("__metadata__", {}))
        shapes = {
            str(key): (str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
            for key, entry in header.items()
        }
        ends = [int(entry["data_offsets"][1]) for entry in header.values()]
    except (struct.error, LookupError, *_NOT_AS_EXPECTED) as error:
        raise LoraError(f"{path}: not a safetensors file") from error
    if 8 + header_bytes + max(ends, default=0) != size_bytes:
        raise LoraError(f"{path}: cut short, or longer than its header says")
    return shapes, metadata


def _read_scale(metadata: Mapping[str, str], path: Path) -> Callable[[int], float]:
    """Return what pairs of a rank are multiplied by, as diffusers reads it from what it saved.

    Without such metadata nothing: a pair is added as it is.
    """
    if _SAVED_BY_DIFFUSERS not in metadata:
        return lambda _rank: 1.0
    try:
        config = json.loads(metadata[_SAVED_BY_DIFFUSERS])
        alpha = float(config.get("transformer.lora_alpha", 8))  # peft's default
        for name in ("alpha_pattern", "use_dora"):
            if config.get(f"transformer.{name}"):
                raise LoraError(f"{path}: {name} in its metadata is not understood")
    except _NOT_AS_EXPECTED as error:
        raise LoraError(f"{path}: its {_SAVED_BY_DIFFUSERS} is not understood") from error
    stabilised = config.get("transformer.use_rslora")
    return lambda rank: alpha / (math.sqrt(rank) if stabilised else rank)


def _group(shapes: Shapes, path: Path) -> dict[str, dict[str, str]]:
    """Return, for each layer, the keys of its A, its B, and its alpha, as far as there are any."""
    layers: dict[str, dict[str, str]] = {}
    for key, (dtype, _) in shapes.items():
        found = _KEY.fullmatch(key)
        if not found:
            raise LoraError(f"{path}: {key} is not a name of this kind of LoRA")
        if dtype not in DTYPES:
            raise LoraError(f"{path}: {key} is of type {dtype}, not {', '.join(DTYPES)}")
        keys, part = layers.setdefault(found["layer"], {}), found["side"] or "alpha"
        if part in keys:
            raise LoraError(f"{path}: {key} and {keys[part]} are the same")
        keys[part] = key
    if not layers:
        raise LoraError(f"{path}: there is nothing in it")
    return layers


def _check(
    layers: Mapping[str, Mapping[str, str]], shapes: Shapes, transformer: nn.Module, path: Path
) -> None:
    known = dict(transformer.named_modules())
    for name, keys in layers.items():
        if not {"A", "B"} <= keys.keys():
            raise LoraError(f"{path}: {name} has only one half of its pair")
        linear = known.get(name)
        if not isinstance(linear, nn.Linear):
            raise LoraError(f"{path}: {name} is no linear layer of this transformer")
        (down, up), alpha = (shapes[keys[side]][1] for side in "AB"), keys.get("alpha")
        fits = len(down) == len(up) == 2 and down[0] == up[1] > 0
        if not fits or (up[0], down[1]) != (linear.out_features, linear.in_features):
            raise LoraError(
                f"{path}: {name} is {linear.out_features}x{linear.in_features}, "
                f"but its pair is {up} and {down}"
            )
        if alpha and shapes[alpha][1] not in ((), (1,)):
            raise LoraError(f"{path}: {alpha} is not a single number")


def _make_pair(
    keys: Mapping[str, str], tensors: Mapping[str, torch.Tensor], scale: Callable[[int], float]
) -> Pair:
    down, up = (tensors[keys[side]] for side in "AB")
    rank = down.shape[0]
    factor = float(tensors[keys["alpha"]]) / rank if "alpha" in keys else scale(rank)
    return Pair(down, up, factor)
