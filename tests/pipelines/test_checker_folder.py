"""A checker's folder, judged without loading it: what is missing, cut short, or finds nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.checker_folder import is_unsafe, read_checker_folder
from pipelines.errors import CheckerUnavailableError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(demo_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny checkpoint's checker, for a test to damage."""
    return shutil.copytree(demo_model / "safety_checker", tmp_path / "checker")


def _change_config(folder: Path, **changes: Any) -> None:
    content = {**json.loads((folder / CONFIG).read_text()), **changes}
    (folder / CONFIG).write_text(json.dumps(content))


def _refusal(folder: Path, *unsafe: str) -> str:
    with pytest.raises(CheckerUnavailableError) as caught:
        read_checker_folder(folder, unsafe)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_whole_folder_is_described(folder: Path) -> None:
    """Class, labels, and which of them count as unsafe."""
    found = read_checker_folder(folder)
    assert found.architecture == "ViTForImageClassification"
    assert (found.labels, found.unsafe) == (("normal", "nsfw"), ("nsfw",))
    assert found.description == "checker (ViTForImageClassification: nsfw)"


def test_every_missing_file_is_named(folder: Path) -> None:
    """Three missing files make three lines; a folder that is not there is one."""
    names = [path.name for path in folder.iterdir()]
    for name in names:
        (folder / name).unlink()
    lines = _refusal(folder).splitlines()
    assert sorted(lines) == sorted(f"{folder / name}: missing" for name in names)
    assert _refusal(folder / "none").endswith("none: no such folder")
    assert "cannot be read" in _refusal(folder / ("x" * 300))


def test_a_pickle_is_no_substitute(folder: Path) -> None:
    """Weights in a pickle count as missing: only safetensors are read."""
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert _refusal(folder).endswith(f"{WEIGHTS}: missing")


@pytest.mark.parametrize("kept", [0, 4, 9, 100, -1])
def test_weights_cut_anywhere_are_refused(folder: Path, kept: int) -> None:
    """In the length, in the header, and by the last byte."""
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:kept])
    assert "safetensors file" in _refusal(folder) or "cut short" in _refusal(folder)


@pytest.mark.parametrize(
    "header", [b"[]", b"{}x", b'{"a": 1}', b'{"a": {"data_offsets": []}}', b"[" * 100_000]
)
def test_a_header_of_nonsense_is_refused(folder: Path, header: bytes) -> None:
    """Whatever is in it, the answer is a line and no traceback."""
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    assert "not a safetensors file" in _refusal(folder)


def test_shards_are_followed(folder: Path) -> None:
    """An index names the files; one that is missing is told, and one that is broken itself."""
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    index = folder / INDEX
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    read_checker_folder(folder)
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    assert _refusal(folder).endswith("b.safetensors: missing")
    for broken in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"x": [1]}}'):
        index.write_text(broken)
        assert INDEX in _refusal(folder)


@pytest.mark.parametrize("content", ["", "[]", '"x"', "{", "[" * 100_000])
def test_a_broken_config_is_named(folder: Path, content: str) -> None:
    """JSON that is none, or no object."""
    (folder / CONFIG).write_text(content)
    assert f"{folder / CONFIG}: not a JSON object" in _refusal(folder)


@pytest.mark.parametrize("architectures", [None, [], ["BertModel"], "x"])
def test_another_kind_of_model_is_refused(folder: Path, architectures: Any) -> None:
    """Only image classifiers and CompVis' checker can say anything of an image."""
    _change_config(folder, architectures=architectures)
    assert "neither an image classifier" in _refusal(folder)


@pytest.mark.parametrize("labels", [None, [], 3, {"0": "normal", "2": "nsfw"}])
def test_labels_must_be_numbered(folder: Path, labels: Any) -> None:
    """A label whose output is not known cannot be read."""
    _change_config(folder, id2label=labels)
    assert "label" in _refusal(folder)


def test_no_unsafe_label_is_refused_and_can_be_named(folder: Path) -> None:
    """A checker that can find nothing would be worse than none; naming the labels is the cure."""
    _change_config(folder, id2label={"0": "neutral", "1": "low", "2": "high"})
    assert "say which are, of neutral, low, high" in _refusal(folder)
    assert read_checker_folder(folder, ["high", "low"]).unsafe == ("low", "high")
    assert "no label hgih; its labels are neutral, low, high" in _refusal(folder, "hgih", "low")
    assert "flag everything" in _refusal(folder, "neutral", "low", "high")


def test_compvis_kind_has_no_labels(folder: Path) -> None:
    """It is told by its class, needs no labels, and a wish for some is a mistake."""
    _change_config(folder, architectures=["StableDiffusionSafetyChecker"], id2label=None)
    found = read_checker_folder(folder)
    assert (found.labels, found.unsafe) == ((), ())
    assert "its concepts" in found.description
    assert "no labels to choose from" in _refusal(folder, "nsfw")


@pytest.mark.parametrize(
    ("label", "unsafe"),
    [
        *((label, True) for label in ("nsfw", "NSFW", "porn", "Hentai", "sexy", "gore_blood")),
        *((label, True) for label in ("unsafe", "explicit nudity", "sexual-content")),
        *((label, False) for label in ("normal", "sfw", "safe", "neutral", "drawings", "LABEL_1")),
        *((label, False) for label in ("not_nsfw", "non-nsfw", "No violence", "essexy", "")),
    ],
)
def test_labels_are_known_by_their_words(label: str, unsafe: bool) -> None:
    """By whole words, and not where the word before them turns their meaning around."""
    assert is_unsafe(label) == unsafe


def test_it_is_told_without_torch(folder: Path) -> None:
    """The server asks at start, and never imports it."""
    script = (
        "import sys\nfrom pathlib import Path\nimport pipelines.verdicts, pipelines.review\n"
        "from pipelines.checker_folder import read_checker_folder\n"
        "read_checker_folder(Path(sys.argv[1]))\nprint('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
