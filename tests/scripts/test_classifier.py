"""The demonstration safety checker: it learns, stops and goes on, and loads like Falconsai's."""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.compat import declare_torchvision_operators

declare_torchvision_operators()

import transformers  # noqa: E402

from scripts.train_demo_model import classifier, loop  # noqa: E402
from scripts.train_demo_model.world import SHAPES  # noqa: E402

CPU = torch.device("cpu")
STEPS = 16
WEIGHTS = "model.safetensors"


class _StoppedError(Exception):
    """Ends a training run from within."""


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take small batches and log each half of a run: this is about the way, not the result."""
    monkeypatch.setattr(classifier, "_BATCH", 8)
    monkeypatch.setattr(loop, "_LOG_EVERY_STEPS", STEPS // 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the work folder of a short training run that was not stopped."""
    work = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_BATCH", 8)
        patch.setattr(loop, "_LOG_EVERY_STEPS", STEPS // 2)
        assert classifier.train_classifier(work, CPU, steps=STEPS) == work / "safety_checker"
    return work


def test_the_loss_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same few pictures again and again, what is wrong with the answers becomes less."""
    pictures = classifier.sample_pictures(random.Random(0), 8)
    monkeypatch.setattr(classifier, "sample_pictures", lambda *_: pictures)
    monkeypatch.setattr(loop, "_LOG_EVERY_STEPS", STEPS // 2)
    classifier.train_classifier(tmp_path, CPU, steps=STEPS)
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = (json.loads(line)["loss"] for line in lines)
    assert second < 0.95 * first


def test_the_folder_loads_by_name_and_has_only_safetensors(trained: Path) -> None:
    """The classes that find out by themselves what a folder holds take it, without network."""
    folder = trained / "safety_checker"
    model = transformers.AutoModelForImageClassification.from_pretrained(
        folder, local_files_only=True
    )
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        WEIGHTS,
    }
    assert (folder / WEIGHTS).stat().st_size < 700_000
    assert model.config.id2label == {0: "normal", 1: "nsfw"}
    assert type(processor).__name__.startswith("ViTImageProcessor")
    white = processor([Image.new("RGB", (300, 100), "white")], return_tensors="pt")
    assert white["pixel_values"].shape == (1, 3, 224, 224)
    assert torch.equal(white["pixel_values"], torch.ones(1, 3, 224, 224))
    assert model(**white).logits.shape == (1, 2)


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that are written are the same to the last byte."""
    sample = classifier.sample_pictures
    calls = 0

    def sample_or_stop(source: random.Random, count: int) -> object:
        nonlocal calls
        calls += 1
        if calls == 1 + STEPS // 2:
            raise _StoppedError
        return sample(source, count)

    monkeypatch.setattr(loop, "_SAVE_EVERY_SECONDS", -1.0)  # else only after minutes
    monkeypatch.setattr(classifier, "sample_pictures", sample_or_stop)
    with pytest.raises(_StoppedError):
        classifier.train_classifier(tmp_path, CPU, steps=STEPS)
    assert not (tmp_path / "safety_checker").exists()
    classifier.train_classifier(tmp_path, CPU, steps=STEPS)
    assert calls == STEPS + 1
    resumed, whole = (folder / "safety_checker" / WEIGHTS for folder in (tmp_path, trained))
    assert resumed.read_bytes() == whole.read_bytes()


def test_every_other_picture_has_an_arrow() -> None:
    """The cells tell where; the others hold every other shape, or nothing at all."""
    pictures, cells = classifier.sample_pictures(random.Random(3), 80)
    assert len(pictures) == 80
    assert classifier.labels_of(cells).tolist() == [0, 1] * 40
    shown = set(cells[::2].flatten().tolist())
    assert shown == {0, *(1 + SHAPES.index(name) for name in SHAPES if name != "arrow")}
    empty = [not bool(grid.any()) for grid in cells]
    assert 0 < sum(empty) < 20
    assert not any(empty[1::2])


def test_what_is_measured_are_shares(trained: Path) -> None:
    """A classifier that has hardly learnt is not right everywhere."""
    rates = classifier.measure(trained / "safety_checker", pictures=32, seed=10**9)
    assert 0 <= rates.recall <= 1
    assert 0 <= rates.false_positives <= 1
    assert (rates.recall, rates.false_positives) != (1.0, 0.0)
