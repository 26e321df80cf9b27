"""What images come from: noted once, and another name for anything that can change a picture."""

import json
import os
from dataclasses import replace
from pathlib import Path

from pipelines.build import build_id, describe_build, keep_build
from pipelines.types import LoadOptions


def make_model(folder: Path) -> LoadOptions:
    """Write what has the layout of a model, and return how to load it."""
    weights = folder / "transformer" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    (folder / "README.md").write_text("not read by any pipeline")
    return LoadOptions(model=folder)


def test_equal_loads_have_one_name_and_one_note(tmp_path: Path) -> None:
    """A second runner, or a second start, adds nothing."""
    options = make_model(tmp_path / "model")
    notes = tmp_path / "builds"
    names = {keep_build(describe_build(options, "cpu", "float32"), notes) for _ in range(2)}
    (path,) = notes.iterdir()
    assert names == {path.stem}
    build = json.loads(path.read_text())
    assert [Path(file["path"]).name for file in build["files"]] == ["model.safetensors"]
    assert build["versions"]["torch"]


def test_whatever_can_change_a_picture_changes_the_name(tmp_path: Path) -> None:
    """Weights, a LoRA, the device, its number format, and the operator's choices."""
    options = make_model(tmp_path / "model")
    lora = tmp_path / "mine.safetensors"
    lora.write_bytes(b"lora")
    weights = tmp_path / "model" / "transformer" / "model.safetensors"
    names = [
        build_id(describe_build(options, "cpu", "float32")),
        build_id(describe_build(options, "cpu", "bfloat16")),
        build_id(describe_build(options, "NVIDIA H200", "float32")),
        build_id(describe_build(replace(options, compile="on"), "cpu", "float32")),
        build_id(describe_build(replace(options, flash_lora=lora), "cpu", "float32")),
    ]
    os.utime(weights, ns=(0, 0))
    names.append(build_id(describe_build(options, "cpu", "float32")))
    assert len(set(names)) == 6
