"""What a LoRA file says of itself: judged before anything in it is read, and never run."""

import json
import pickle
import random
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import LoraError
from pipelines.lora_file import Lora, read_fitting
from tests.pipelines.lora_files import KEY, LAYER, make_pair

WIDTHS = {LAYER: (64, 64)}


def read(path: Path) -> Lora:
    """Read a LoRA for one layer."""
    return read_fitting(path, WIDTHS)


class _Evil:
    """Would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    """Whatever it is called."""
    path, written = tmp_path / "lora.safetensors", tmp_path / "written"
    path.write_bytes(pickle.dumps(_Evil(written)))
    with pytest.raises(LoraError, match="a pickle"):
        read(path)
    torch.save({"lora": _Evil(written)}, path)
    with pytest.raises(LoraError, match="a pickle"):
        read(path)
    assert not written.exists()


def test_a_header_as_long_as_a_pickle_s_magic_number_is_no_pickle(tmp_path: Path) -> None:
    """Both begin with the bytes 80 02."""
    path = tmp_path / "lora.safetensors"
    save_file(make_pair(), path)
    whole = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", whole[:8])
    header, numbers = whole[8 : 8 + header_bytes], whole[8 + header_bytes :]
    path.write_bytes(struct.pack("<Q", 0x280) + header.ljust(0x280) + numbers)
    assert path.read_bytes().startswith(b"\x80\x02")
    assert read(path).pairs.keys() == {LAYER}


@pytest.mark.parametrize("offsets", [([0, 1024], [0, 1024]), ([0, 1024], [1032, 2056])])
def test_tensors_that_overlap_or_leave_gaps_are_refused(
    tmp_path: Path, offsets: tuple[list[int], list[int]]
) -> None:
    """Every byte belongs to one tensor, as safetensors itself demands."""
    path = tmp_path / "lora.safetensors"
    shapes = ([4, 64], [64, 4])
    header = {
        KEY.format(side): {"dtype": "F32", "shape": shape, "data_offsets": place}
        for side, shape, place in zip("AB", shapes, offsets, strict=True)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(max(offsets[1])))
    with pytest.raises(LoraError, match="not where it should be"):
        read(path)


def test_a_header_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    """Ten megabytes of JSON are enough for any LoRA."""
    path = tmp_path / "lora.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 10_000_001) + b"{")
        file.truncate(20_000_000)
    with pytest.raises(LoraError, match="header is longer"):
        read(path)


def test_a_file_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    """Cut short anywhere, too long, missing, or with a header of impossible size."""
    path = tmp_path / "part.safetensors"
    save_file(make_pair(), path)
    whole = path.read_bytes()
    for data in (
        *(whole[:size] for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1)),
        whole + b"more",
        struct.pack("<Q", 2**63) + whole[8:],
    ):
        path.write_bytes(data)
        with pytest.raises(LoraError):
            read(path)
    with pytest.raises(LoraError, match="cannot be read"):
        read(tmp_path / "missing.safetensors")


def write_entry(path: Path, key: str, entry: str) -> None:
    """Write a header of one entry as it stands, and some numbers."""
    header = f'{{"{key}":{{{entry}}}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(1024))


@pytest.mark.parametrize(
    "number",
    ["1e999", "-Infinity", "NaN", "null", "[]", '"4"', "true", "-4", "1099511627777", "9" * 5000],
)
def test_impossible_numbers_in_a_header_are_refused(tmp_path: Path, number: str) -> None:
    """In a shape and in an offset."""
    path = tmp_path / "lora.safetensors"
    for shape, end in ((number, "1024"), ("4", number)):
        entry = f'"dtype":"F32","shape":[{shape},64],"data_offsets":[0,{end}]'
        write_entry(path, KEY.format("A"), entry)
        with pytest.raises(LoraError, match="not a safetensors file$"):
            read(path)


@pytest.mark.parametrize("size", ["1", "9" * 4300])
def test_a_shape_of_many_numbers_is_refused_before_they_are_multiplied(
    tmp_path: Path, size: str
) -> None:
    """Ten megabytes of large ones would take minutes, in which the whole gateway stood still."""
    path = tmp_path / "lora.safetensors"
    sizes = ",".join([size] * (9_900_000 // (len(size) + 1)))
    write_entry(path, KEY.format("A"), f'"dtype":"F32","shape":[{sizes}],"data_offsets":[0,1024]')
    started = time.process_time()
    with pytest.raises(LoraError, match="not a safetensors file$"):
        read(path)
    assert time.process_time() - started < 10


@pytest.mark.parametrize("place", ["key", "dtype"])
def test_text_that_cannot_be_told_is_refused(tmp_path: Path, place: str) -> None:
    """Half of a character would stop every message and log line that it gets into."""
    path, half = tmp_path / "lora.safetensors", "\\ud800"
    key, dtype = (f"{half}.lora_A.weight", "F32") if place == "key" else (KEY.format("A"), half)
    write_entry(path, key, f'"dtype":"{dtype}","shape":[4,64],"data_offsets":[0,1024]')
    with pytest.raises(LoraError, match="not a safetensors file$"):
        read(path)


def test_a_damaged_header_is_refused_or_harmless(tmp_path: Path) -> None:
    """Flipped bits of a header give one kind of error, or a LoRA that fits."""
    path = tmp_path / "lora.safetensors"
    save_file(make_pair(), path)
    whole = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", whole[:8])
    assert json.loads(whole[8 : 8 + header_bytes])
    source, refused = random.Random(0), 0
    for _ in range(300):
        data = bytearray(whole)
        data[source.randrange(8 + header_bytes)] ^= 1 << source.randrange(8)
        path.write_bytes(data)
        try:
            lora = read(path)
        except LoraError:
            refused += 1
        else:
            assert lora.pairs.keys() == {LAYER}
    assert refused > 250
