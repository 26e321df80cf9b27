"""torchvision beside a CPU-only torch; every case in a process of its own, as imports are final."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

IMAGE_PATH = """
from pipelines.compat import declare_torchvision_operators
declare_torchvision_operators()
declare_torchvision_operators()

import torchvision
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

names = ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "<pad>", "<unk>"]
words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.add_special_tokens(names)
processor = transformers.PixtralProcessor(
    image_processor=transformers.PixtralImageProcessor(),
    tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>"),
    patch_size=14,
    spatial_merge_size=2,
)
inputs = processor(text="[IMG]", images=Image.new("RGB", (56, 84), "red"))
print(list(inputs["pixel_values"].shape), inputs["input_ids"].flatten().tolist())
"""

DECLARED = """
import sys
import torch
if "--absent" in sys.argv:
    sys.modules["torchvision"] = None
from pipelines.compat import declare_torchvision_operators
declare_torchvision_operators()
print([hasattr(torch.ops.torchvision, name) for name in ("nms", "qnms")])
"""


def _run(code: str, *arguments: str, first_on_path: Path | None = None) -> str:
    """Run `code` in a fresh interpreter in which every warning is an error; return its output."""
    path = [str(first_on_path)] if first_on_path else []
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*path, *sys.path])},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()


def test_the_processor_takes_images_without_a_warning() -> None:
    """A picture of 56x84 pixels becomes three rows of two tokens of 28x28 pixels."""
    rows = [0, 0, 1, 0, 0, 1, 0, 0, 2]
    assert _run(IMAGE_PATH) == f"[1, 3, 84, 56] {rows}"


def test_an_extension_that_loads_is_left_to_declare_its_operators(tmp_path: Path) -> None:
    """As with a wheel that fits its torch: here any library stands in that can be loaded."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(torch._C.__file__, package / "_C.so")
    assert _run(DECLARED, first_on_path=tmp_path) == "[False, False]"


@pytest.mark.parametrize("extension", ["_C.so", "_C.cpython-311-x86_64-linux-gnu.so", "image.so"])
def test_operators_are_declared_where_the_extension_cannot_load(
    tmp_path: Path, extension: str
) -> None:
    """Whether the extension is damaged, or missing beside other libraries."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / extension).write_bytes(b"not a library")
    assert _run(DECLARED, first_on_path=tmp_path) == "[True, True]"


def test_nothing_is_declared_without_torchvision() -> None:
    """What is missing then is torchvision itself, and the loader says so in its own words."""
    assert _run(DECLARED, "--absent") == "[False, False]"
