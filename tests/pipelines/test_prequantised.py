"""Sets of 8-bit weights: what is read is what quantising gives, and no other set is read."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import construction
from pipelines.construction import make_transformer
from pipelines.errors import ModelNotFoundError
from pipelines.flux2 import Flux2
from pipelines.memory import choose_plan
from pipelines.plan import Layout, Plan
from pipelines.prequantised import MANIFEST, check_set, fingerprint, read_set, write_set
from pipelines.quantisation import quantise_blocks
from pipelines.types import LoadOptions, Precision, ignore_load_progress
from pipelines.weights import read_tensors
from tests.pipelines.test_flux2 import make_latents, make_request
from tests.pipelines.test_trees import assert_same

FP8, FLOAT32 = Precision.FP8, Precision.FLOAT32
CPU = torch.device("cpu")
LAYOUT = Layout(exact=False, exact_precision=FLOAT32, fast=FP8)


def ignore(_fraction: float) -> None:
    """Take no note of progress."""


def write(model: Path) -> Path:
    """Write the fp8 set of a model folder."""
    return write_set(make_transformer(model), model, FP8, FLOAT32, ignore)


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny checkpoint with a set in it."""
    copied = shutil.copytree(demo_model, tmp_path / "model")
    write(copied)
    return copied


def test_what_is_read_is_what_quantising_gives(oracle: Any, model: Path) -> None:
    """Every tensor bit for bit, on the device or, of streamed blocks, in memory of its own."""
    folder = check_set(model, FP8, FLOAT32)
    for layout in (LAYOUT, replace(LAYOUT, blocks="streamed")):
        tree = read_set(make_transformer(model), folder, CPU, layout, ignore)
        assert_same(tree, quantise_blocks(oracle.transformer, FP8))


def test_a_set_is_used_where_it_is_all_that_is_needed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture is that of quantising at load, and the exact weights are not read."""
    asked: list[object] = []

    def read(*args: Any) -> None:
        asked.append(args[0])
        read_tensors(*args)

    monkeypatch.setattr(construction, "read_tensors", read)

    def load(**changes: Any) -> Flux2:
        def choose(*args: Any, **kwargs: Any) -> Plan:
            return replace(choose_plan(*args, **kwargs), **{"exact": False, "fast": FP8, **changes})

        monkeypatch.setattr(construction, "choose_plan", choose)
        options = LoadOptions(model=model, device="cpu")
        return construction.construct(options, ignore_load_progress)[0]

    requests = (make_request(), make_request(flash=True))
    with_set = [make_latents(load(flash="attached"), request) for request in requests]
    assert asked == []
    shutil.rmtree(model / "quantised")
    without = [make_latents(load(flash="attached"), request) for request in requests]
    assert len(asked) == len(requests)
    assert all(map(torch.equal, with_set, without))


@pytest.mark.parametrize("changes", [{"exact": True}, {"flash": "fused"}])
def test_exact_weights_are_read_where_they_are_needed(
    model: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """For an exact tree, and to fuse a LoRA before quantising."""

    def refuse(*_args: object) -> None:
        raise AssertionError("the set was read")

    def choose(*args: Any, **kwargs: Any) -> Plan:
        return replace(choose_plan(*args, **kwargs), **{"exact": False, "fast": FP8, **changes})

    monkeypatch.setattr(construction, "choose_plan", choose)
    monkeypatch.setattr(construction, "read_set", refuse)
    construction.construct(LoadOptions(model=model, device="cpu"), ignore_load_progress)


def damage_manifest(folder: Path) -> None:
    """Leave half of it."""
    path = folder / MANIFEST
    path.write_text(path.read_text()[:40])


def damage_weights(folder: Path) -> None:
    """Cut a file short."""
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


def lose_weights(folder: Path) -> None:
    """Take a file away."""
    next(folder.glob("*.safetensors")).unlink()


def change_format(folder: Path) -> None:
    """Say that another version wrote it."""
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))


def change_model(folder: Path) -> None:
    """Train the model a little."""
    path = folder.parent.parent / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (damage_manifest, "set.json: not a manifest"),
        (damage_weights, "missing or cut short"),
        (lose_weights, "missing or cut short"),
        (change_format, "stale, made for format 0"),
        (change_model, "stale, made for source"),
        (shutil.rmtree, "no set of quantised weights"),
    ],
)
def test_a_set_that_is_not_this_models_is_not_used(
    model: Path, damage: Callable[[Path], None], problem: str
) -> None:
    """And why is said."""
    damage(model / "quantised" / "fp8")
    with pytest.raises(ModelNotFoundError, match=problem):
        check_set(model, FP8, FLOAT32)


def test_a_set_for_another_number_format_is_not_used(model: Path) -> None:
    """What is rounded twice is not what is rounded once."""
    with pytest.raises(ModelNotFoundError, match="made for exact_precision float32"):
        check_set(model, FP8, Precision.BFLOAT16)


def test_a_new_set_takes_the_place_of_the_old_one(model: Path) -> None:
    """Nothing is left of the old one, nor of a writer that was killed."""
    change_model(model / "quantised" / "fp8")
    (model / "quantised" / ".fp8.partial").mkdir()
    (model / "quantised" / ".fp8.partial" / "leftover.safetensors").write_bytes(b"half")
    folder = write(model)
    assert check_set(model, FP8, FLOAT32) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["fp8"]
    assert not (folder / "leftover.safetensors").exists()


def test_two_writers_do_not_mix(model: Path) -> None:
    """The second one is told that there is a first."""
    partial = model / "quantised" / ".fp8.partial"
    partial.mkdir()
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            write(model)
    finally:
        os.close(lock)
    check_set(model, FP8, FLOAT32)


def test_a_fingerprint_tells_weights_apart(model: Path) -> None:
    """By their content, not by where they lie or when they were written."""
    before = fingerprint(model)
    assert fingerprint(shutil.copytree(model, model.parent / "copy")) == before
    change_model(model / "quantised" / "fp8")
    assert fingerprint(model) != before


def test_the_command_writes_a_set(demo_model: Path, tmp_path: Path) -> None:
    """As an operator calls it; it says where and how large, and names what is missing."""
    model = shutil.copytree(demo_model, tmp_path / "model")
    command = [str(Path(sys.executable).parent / "flux2-serve"), "weights", "quantize"]
    command += ["--precision", "int8", "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    folder = check_set(model, Precision.INT8, Precision.BFLOAT16)
    assert f"{folder}: 0.00 GB" in done.stdout
    (model / "vae" / "config.json").unlink()
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "vae/config.json: missing" in failed.stderr
