"""LoRA files: checked by their headers against a transformer, and only then read.

diffusers, peft, ai-toolkit, kohya, LyCORIS and Black Forest Labs each have their own names and
halves, see `lora_names`. diffusers' converters are not used: kohya's leaves out keys that it does
not know, BFL's takes `final_layer.adaLN_modulation.1` halves swapped.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from pipelines.errors import LoraError
from pipelines.lora_header import Entry, Header, read_header
from pipelines.lora_names import Place, find_places, split_key
from pipelines.lora_parts import Addition, Pair, make_addition
from pipelines.lora_strength import read_strength

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Widths = Mapping[str, tuple[int, int]]
"""What each linear layer maps to, and from: (out, in), by its name."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Lora:
    """A whole file: what it adds, by the layers' names, and the hash of its content."""

    additions: Mapping[str, Addition]
    sha256: str

    @property
    def pairs(self) -> Mapping[str, Pair]:
        """What it adds, if that is pairs alone. Raises `LoraError` for a LoKr."""
        pairs = {
            name: addition
            for name, addition in self.additions.items()
            if isinstance(addition, Pair)
        }
        if len(pairs) < len(self.additions):
            raise LoraError("a LoKr, which can only be put on for a request")
        return pairs

    @property
    def nbytes(self) -> int:
        """What its tensors take."""
        return sum(addition.nbytes for addition in self.additions.values())

    def to(self, device: torch.device, dtype: torch.dtype) -> "Lora":
        """Return it in this type on this device."""
        additions = {name: part.to(device, dtype) for name, part in self.additions.items()}
        return Lora(additions, self.sha256)


@dataclass(frozen=True, slots=True)
class _Group:
    """What a file has for one name: the keys of its parts, where they go, and how strongly.

    `rank` is that of what is in two factors, `unless_alpha` the factor if there is no alpha.
    """

    keys: Mapping[str, str]
    places: tuple[Place, ...]
    rank: int | None
    unless_alpha: float


def find_widths(transformer: nn.Module) -> Widths:
    """Return the widths of all linear layers, of any kind."""
    return {
        name: (int(module.out_features), int(module.in_features))
        for name, module in transformer.named_modules()
        if hasattr(module, "out_features") and hasattr(module, "in_features")
    }


def read_lora(path: Path, transformer: nn.Module) -> Lora:
    """Read a LoRA that fits the transformer, onto the CPU.

    Raises `LoraError`, which names the file, as `read_fitting` does.
    """
    try:
        return read_fitting(path, find_widths(transformer))
    except LoraError as error:
        raise LoraError(f"{path}: {error}") from error


def read_fitting(path: Path, widths: Widths) -> Lora:
    """Read a LoRA for layers of these widths, onto the CPU.

    Raises `LoraError`, before any number is read, for a file that is no whole safetensors file, or
    has keys, halves, types or shapes that the layers have no place for. Its message does not name
    the file. What is hashed is what is used: the file is read once.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file)
            groups = _check(header, widths)
            data = _read_whole(file)
    except OSError as error:
        raise LoraError(f"cannot be read: {error.strerror}") from error
    additions: dict[str, Addition] = {}
    for name, group in groups.items():
        parts = {part: _tensor(header.tensors[key], data) for part, key in group.keys.items()}
        factor = _factor_of(parts.pop("alpha", None), group)
        if not math.isfinite(factor):
            raise LoraError(f"the alpha of {name} is not a finite number")
        for place in group.places:
            additions[place.layer] = make_addition(parts, factor, place)
    return Lora(additions, hashlib.sha256(data).hexdigest())


def _read_whole(file: BinaryIO) -> memoryview:
    """Read the file to where torch has its tensors: sums on a CPU round by what numbers lie at."""
    size_bytes = file.seek(0, 2)
    file.seek(0)
    data = torch.empty(size_bytes, dtype=torch.uint8).numpy().data
    if file.readinto(data) != size_bytes:  # type: ignore[attr-defined]
        raise LoraError("cut short while it was read")
    return data


def _tensor(entry: Entry, data: memoryview) -> Tensor:
    """Return a view of the file's bytes."""
    flat = torch.frombuffer(
        data, dtype=_TYPES[entry.dtype], count=math.prod(entry.shape), offset=entry.begin
    )
    return flat.reshape(entry.shape)


def _check(header: Header, widths: Widths) -> dict[str, _Group]:
    """Return everything that is in the file, by the names there; all of it has its place."""
    places, strength = find_places(widths), read_strength(header.metadata)
    groups: dict[str, _Group] = {}
    taken: dict[str, str] = {}
    for name, keys in _group(header.tensors).items():
        if name not in places:
            raise LoraError(f"{name} is no linear layer of this transformer")
        shapes = {part: header.tensors[key].shape for part, key in keys.items()}
        if shapes.pop("alpha", ()) not in ((), (1,)):
            raise LoraError(f"{keys['alpha']} is not a single number")
        out, into = widths[places[name][0].layer]
        rank = _check_shapes(name, shapes, out * places[name][0].shares, into)
        for place in places[name]:
            if place.layer in taken:
                raise LoraError(f"{name} and {taken[place.layer]} are the same")
            taken[place.layer] = name
        if rank and "down" in keys:
            unless_alpha = strength.of_pair(rank)
        else:
            unless_alpha = strength.of_lokr(name, keys, rank)
        groups[name] = _Group(keys, places[name], rank, unless_alpha)
    if not groups:
        raise LoraError("there is nothing in it")
    return groups


def _group(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the keys by the names of layers, and of these by the parts that they hold."""
    groups: dict[str, dict[str, str]] = {}
    for key in keys:
        name, part = split_key(key)
        parts = groups.setdefault(name, {})
        if part in parts:
            raise LoraError(f"{key} and {parts[part]} are the same")
        parts[part] = key
    return groups


def _check_shapes(name: str, shapes: Shapes, out: int, into: int) -> int | None:
    """Refuse parts that do not add to a weight (out, into); return the rank, if there is one."""
    if any(len(shape) != 2 for shape in shapes.values()):
        raise LoraError(f"{name} has parts that are no matrices")
    if shapes.keys() <= {"down", "up"}:
        if len(shapes) < 2:
            raise LoraError(f"{name} has only one half of its pair")
        down, up = shapes["down"], shapes["up"]
        if down[0] != up[1] or down[0] == 0 or (up[0], down[1]) != (out, into):
            raise LoraError(f"{name} is {out}x{into}, but its pair is {up} and {down}")
        return down[0]
    (left, left_rank), (right, right_rank) = (
        _shape_of(name, shapes, side) for side in ("w1", "w2")
    )
    if (left[0] * right[0], left[1] * right[1]) != (out, into):
        raise LoraError(f"{name} is {out}x{into}, but its LoKr is of {left} and {right}")
    return right_rank or left_rank


def _shape_of(name: str, shapes: Shapes, side: str) -> tuple[tuple[int, ...], int | None]:
    """Return the shape of one side of a LoKr, and its rank if it is itself in two factors."""
    whole, first, second = (shapes.get(side + part) for part in ("", "_a", "_b"))
    others = {"w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"}
    if not shapes.keys() <= others or (whole is None) == (first is None or second is None):
        raise LoraError(f"{name} has not the parts of one LoRA or one LoKr")
    if whole is not None:
        return whole, None
    if first is None or second is None or first[1] != second[0] or first[1] == 0:
        raise LoraError(f"{name} has factors of {side} that do not fit: {first} and {second}")
    return (first[0], second[1]), first[1]


def _factor_of(alpha: Tensor | None, group: _Group) -> float:
    """Return what is multiplied in: alpha over rank, and nothing for a LoKr of whole matrices."""
    if alpha is None:
        return group.unless_alpha
    return 1.0 if group.rank is None else float(alpha) / group.rank
