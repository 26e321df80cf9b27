"""The blocks' linear layers in 8 bits: fp8 or int8, with a scale for each row and each token.

97 % of the weights are here and nearly all of the work, so this halves memory and, on cards that
multiply 8 bits faster, time. What stands around the blocks is small and keeps its precision. A
quantised set can be kept on disk, so that it is loaded without the weights that it was made from.
"""

import fcntl
import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import Flux2Transformer2DModel
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import ModelNotFoundError
from pipelines.types import Precision
from pipelines.variants import Module, derive, find_block_linears

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""What the largest value of a row becomes. E4M3: https://arxiv.org/abs/2209.05433, table 1."""

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""The scale of a row of zeros: with 0 it would be 0 / 0."""

SIZE_MULTIPLE = 16
"""Both widths of a layer must be multiples of this for the device's 8-bit kernels."""

FAST_FROM = {Precision.FP8: (8, 9), Precision.INT8: (8, 0)}
"""The CUDA compute capabilities from which on these are fast, on Ada and Ampere; the better first.
https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html"""

MANIFEST_NAME = "quantised.json"
"""Says what a set on disk is and lists its other files with their sizes in bytes."""

_FORMAT = 1  # of such sets; counted up whenever values or files change
_SAMPLES, _SAMPLE_BYTES = 64, 4096


def quantise_rows(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round each row of `values` (N, K) to `dtype`, its absolute maximum to the largest number.

    Returns the rows (N, K) and the float32 scales (N, 1) that they are to be multiplied by. A row
    with a value that is not finite gets a scale that is not, so that this is not hidden.
    """
    largest = values.abs().amax(dim=-1, keepdim=True).float()
    scales = (largest / LARGEST[dtype]).clamp(min=SMALLEST_SCALE)
    quotients = values / scales  # in float32, and no larger than the largest number but for an ulp
    return (quotients.round() if dtype is torch.int8 else quotients).to(dtype), scales


class QuantisedLinear(nn.Module):
    """A linear layer without bias, its weights rounded once and its input at every call.

    A token's result (..., out) depends on nothing but this token (..., in), and has its type. Do
    not cast the module: `to(dtype)` would take the 8-bit floats for weights in full precision.
    Raises `ValueError` for a layer with a bias or with a width that the kernels do not take.
    """

    precision: ClassVar[Precision]
    _dtype: ClassVar[torch.dtype]
    weight: Tensor  # (out, in)
    weight_scale: Tensor  # (out, 1), float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        widths_fit = self.in_features % SIZE_MULTIPLE == self.out_features % SIZE_MULTIPLE == 0
        if "bias" in dict(linear.named_parameters()) or not widths_fit:
            raise ValueError(f"{linear} has a bias, or a width not divisible by {SIZE_MULTIPLE}")
        weight, scale = quantise_rows(linear.weight.detach(), self._dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        tokens, scales = quantise_rows(x.reshape(-1, self.in_features), self._dtype)
        product = self._multiply(tokens, scales, x.dtype).to(x.dtype)
        return product.reshape(*x.shape[:-1], self.out_features)

    @abstractmethod
    def _multiply(self, tokens: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Multiply quantised tokens (N, in), made of `dtype`; returns (N, out) of any type."""


class Float8Linear(QuantisedLinear):
    """A linear layer in E4M3: 3 bits of mantissa, so each number is off by 1/16 at most."""

    precision = Precision.FP8
    _dtype = torch.float8_e4m3fn

    def _multiply(self, tokens: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        weight, weight_scale = self.weight.t(), self.weight_scale.t()
        if not tokens.is_cuda and dtype is not torch.bfloat16:
            # In float64 products and sums of E4M3 are exact (multiples of 2**-18 below 2**18 * in),
            # so nothing but the rounding to 8 bits shows, and their order does not matter.
            return tokens.double() @ weight.double() * weight_scale * scales
        # With a scale for each row CUDA has only bfloat16 to give.
        return torch._scaled_mm(  # noqa: SLF001  (there is no other way to it)
            tokens, weight, scales, weight_scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )


class Int8Linear(QuantisedLinear):
    """A linear layer in 8-bit integers, for cards without 8-bit floats; the sums are exact."""

    precision = Precision.INT8
    _dtype = torch.int8

    def _multiply(self, tokens: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ARG002
        count = tokens.shape[0]
        if count <= 16:  # CUDA's kernel wants more
            tokens = functional.pad(tokens, (0, 0, 0, 17 - count))
        sums = torch._int_mm(tokens, self.weight.t())[:count]  # noqa: SLF001  (as above)
        # The small scale first: with huge tokens the other order could overflow on the way.
        return sums.float() * self.weight_scale.t() * scales


LAYERS = {layer.precision: layer for layer in (Float8Linear, Int8Linear)}
"""What stands for a linear layer in each 8-bit precision."""


def quantise_blocks(transformer: Module, precision: Precision) -> Module:
    """Make a tree like `transformer` with quantised blocks; all other tensors are shared.

    The layers are made one by one, so that memory never holds more than the result and what one
    layer needs. Raises `ValueError` for a precision that is not of 8 bits.
    """
    if precision not in LAYERS:
        raise ValueError(f"blocks cannot be quantised to {precision}")
    return derive(transformer, dict.fromkeys(find_block_linears(transformer), LAYERS[precision]))


def fastest_of(capability: tuple[int, int] | None) -> Precision | None:
    """Choose for a CUDA device of this capability, or for the CPU, which has None."""
    fast = (name for name, least in FAST_FROM.items() if capability and capability >= least)
    return next(fast, None)


def choose_fast_precision(device: torch.device) -> Precision | None:
    """Choose the best precision that makes this device faster; None if there is none."""
    cuda = device.type == "cuda"
    return fastest_of(torch.cuda.get_device_capability(device) if cuda else None)


def fingerprint(folder: Path) -> str:
    """Tell a folder's weights from others: by file names, sizes, and samples of the content.

    A fine-tuned model has the names and sizes of its base. All bytes would take a minute, some
    hundred pages take no time. Raises `ModelNotFoundError` if there are no safetensors files.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelNotFoundError(f"{folder}: no safetensors files")
    digest = hashlib.sha256()
    for path in paths:
        size_bytes = path.stat().st_size
        digest.update(f"{path.name} {size_bytes}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size_bytes, max(size_bytes // _SAMPLES, _SAMPLE_BYTES)):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def save_quantised(transformer: Any, folder: Path, *, source: str, shards: str = "5GB") -> None:
    """Write what `quantise_blocks` made as a folder that `load_quantised` reads.

    `source` is the fingerprint of the weights that it was made from, `shards` how large a file may
    be. The folder appears whole or not at all. Raises `ValueError` for another transformer,
    `FileExistsError` for a folder with files in it, `BlockingIOError` while another process writes.
    """
    kinds = {type(module) for module in transformer.modules()} & set(LAYERS.values())
    if len(kinds) != 1:
        raise ValueError("this is not a transformer that quantise_blocks made")
    about = {"format": _FORMAT, "precision": kinds.pop().precision.value, "source": source}
    with _whole_folder(folder) as unfinished:
        transformer.save_pretrained(unfinished, max_shard_size=shards)
        paths = sorted(unfinished.iterdir())
        for path in paths:
            path.chmod(0o644)  # safetensors keeps its files from other users, such as a server's
        manifest = {**about, "files": {path.name: path.stat().st_size for path in paths}}
        (unfinished / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n")


def load_quantised(
    folder: Path, precision: Precision, device: torch.device, *, source: str | None = None
) -> Any:
    """Load what `save_quantised` wrote straight to the device: the same transformer bit for bit.

    Raises `ModelNotFoundError`, before any weights are read, naming what is missing, cut short, or
    of another precision, format or source; the source is not compared if it is None.
    """
    _check_set(folder, {"format": _FORMAT, "precision": precision.value, "source": source})
    config = Flux2Transformer2DModel.load_config(str(folder), local_files_only=True)
    with torch.device("meta"):  # shapes without memory
        transformer = quantise_blocks(Flux2Transformer2DModel.from_config(config), precision).eval()
    tensors: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    transformer.load_state_dict(tensors, assign=True)
    return transformer


def _check_set(folder: Path, wanted: Mapping[str, Any]) -> None:
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{path}: missing or damaged ({error})") from error
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    problems = [
        f"{path}: stale, its {key} is {manifest.get(key)} instead of {value}"
        for key, value in wanted.items()
        if value is not None and manifest.get(key) != value
    ] + [
        f"{folder / name}: {'not of its size' if name in sizes else 'missing'}"
        for name, size_bytes in manifest.get("files", {}).items()
        if sizes.get(name) != size_bytes
    ]
    if problems:
        raise ModelNotFoundError("\n".join(problems))


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Give the empty `<folder>.partial`, which becomes `folder` if the block ends well."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for leftover in partial.iterdir():  # of a process that was killed
            leftover.unlink()
        yield partial
        partial.replace(folder)
    finally:
        os.close(lock)
