"""The networks that look at images: what they flag, and what is refused instead of guessed."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.compat import declare_torchvision_operators

declare_torchvision_operators()

import transformers  # noqa: E402
from diffusers.pipelines.stable_diffusion.safety_checker import (  # noqa: E402
    StableDiffusionSafetyChecker,
)

from pipelines.demonstration import DEMO_CHECKPOINT  # noqa: E402
from pipelines.errors import (  # noqa: E402
    CheckerUnavailableError,
    CheckFailedError,
    DeviceLostError,
    OutOfMemoryError,
)
from pipelines.safety import NetworkChecker, load_checker, make_checker  # noqa: E402
from pipelines.tools.colour_classifier import redness, write_colour_classifier  # noqa: E402
from pipelines.types import LoadOptions, SafetyOptions  # noqa: E402
from pipelines.verdicts import Band, Reason  # noqa: E402

CPU = "cpu"
SIZE = (96, 64)
WEIGHTS = "model.safetensors"
RED, BLUE = (Image.new("RGB", SIZE, name) for name in ("red", "blue"))


@pytest.fixture
def red_folder(demo_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the checker that fires on red, for a test to change."""
    return shutil.copytree(demo_model / "safety_checker", tmp_path / "checker")


@pytest.fixture
def red(demo_model: Path) -> NetworkChecker:
    """Return the checker that fires on red."""
    return load_checker(demo_model / "safety_checker", CPU)


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small checker of CompVis' kind, with random weights."""
    folder = tmp_path_factory.mktemp("concepts") / "safety_checker"
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 32}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = transformers.CLIPConfig(projection_dim=8, vision_config=vision)
        network = StableDiffusionSafetyChecker(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, 0.0, 0.2)
    network.concept_embeds_weights.data.fill_(0.65)
    network.special_care_embeds_weights.data.fill_(0.55)
    network.save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def _change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _noise(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(SIZE)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_it_fires_on_its_colour_in_any_mode(red: NetworkChecker, mode: str) -> None:
    """Red is flagged with its reason, blue is not; grey is blue's like."""
    verdict = red.check(RED.convert(mode))
    assert verdict.flagged == (mode != "L")
    assert verdict.reason is (Reason.NSFW if verdict.flagged else Reason.OK)
    assert not red.check(BLUE.convert(mode)).flagged


def test_the_score_rises_with_red(red: NetworkChecker) -> None:
    """The test checker's answer can be foreseen: it turns where a picture is half as red as red."""
    pictures = [Image.new("RGB", SIZE, (red, 0, 0)) for red in range(0, 256, 15)]
    scores = [red.check(picture).score or 0.0 for picture in pictures]
    assert scores == sorted(scores)
    for picture, score in zip(pictures, scores, strict=True):
        if abs(redness(picture) - 0.5) > 0.02:
            assert (score > 0.5) == (redness(picture) > 0.5)


def test_the_bound_of_the_test_checker_can_be_set(tmp_path: Path) -> None:
    """So that a test can put it between two pictures of a tiny model, whatever these are."""
    write_colour_classifier(tmp_path / "low", bound=-0.9)
    assert load_checker(tmp_path / "low", CPU).check(BLUE).flagged


def test_tolerance_moves_the_threshold(red: NetworkChecker) -> None:
    """What is flagged at the strictest level may pass at the next ones; None is the default."""
    borderline = Image.new("RGB", SIZE, (139, 0, 0))  # a score of 0.86
    flagged = [red.check(borderline, tolerance).flagged for tolerance in (None, 1, 2, 3, 4, 5)]
    assert flagged == [True, True, True, True, True, False]


def test_the_demonstration_checker_is_taken_for_a_real_one() -> None:
    """A residual network in the same layout; nothing in the code asks for a transformer."""
    checker = load_checker(DEMO_CHECKPOINT / "safety_checker", CPU)
    assert "ResNetForImageClassification: nsfw" in checker.description
    assert not checker.check(Image.new("RGB", (512, 512), "white")).flagged


def test_labels_can_be_named(red_folder: Path) -> None:
    """The operator's choice of labels replaces that by known words."""
    checker = load_checker(red_folder, CPU, labels=["normal"])
    assert not checker.check(RED).flagged
    assert checker.check(BLUE).flagged


def test_several_unsafe_labels_count_together(red_folder: Path) -> None:
    """Two labels of 0.33 each are more than a half; of independent ones the highest counts."""
    weights = load_file(red_folder / WEIGHTS)
    weights["classifier.weight"] = torch.zeros(3, 4)
    weights["classifier.bias"] = torch.zeros(3)
    save_file(weights, red_folder / WEIGHTS, metadata={"format": "pt"})
    labels = {"0": "drawing", "1": "porn", "2": "hentai"}
    _change_config(red_folder, id2label=labels, label2id={v: int(k) for k, v in labels.items()})
    assert load_checker(red_folder, CPU).score(RED) == pytest.approx(2 / 3)
    _change_config(red_folder, problem_type="multi_label_classification")
    assert load_checker(red_folder, CPU).score(RED) == pytest.approx(0.5)


def test_compvis_checker_flags_what_its_own_class_flags(concepts: Path) -> None:
    """All of sixty pictures, some of which are flagged."""
    checker = load_checker(concepts, CPU)
    network = StableDiffusionSafetyChecker.from_pretrained(concepts, local_files_only=True)
    processor = transformers.CLIPImageProcessor.from_pretrained(concepts, local_files_only=True)
    flags = []
    for seed in range(60):
        picture = _noise(seed)
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
        _, (flag,) = network(pixels, [np.asarray(picture)])
        assert checker.check(picture).flagged == flag
        flags.append(flag)
    assert 0 < sum(flags) < 60
    assert "StableDiffusionSafetyChecker" in checker.description


def test_compvis_weights_load_by_the_names_that_are_published(
    concepts: Path, tmp_path: Path
) -> None:
    """Its files have one more level in their names than today's class, and a buffer it lacks."""
    folder = shutil.copytree(concepts, tmp_path / "published")
    published = {
        name.replace("vision_model.", "vision_model.vision_model.", 1): tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
    }
    published["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(published, folder / WEIGHTS, metadata={"format": "pt"})
    ours, theirs = (load_checker(path, CPU) for path in (concepts, folder))
    assert ours.score(_noise(1)) == theirs.score(_noise(1))


def test_missing_weights_are_not_drawn_at_random(red_folder: Path) -> None:
    """The library only warns, and such a checker looks like a working one. Nor may they not fit."""
    weights = load_file(red_folder / WEIGHTS)
    head = weights.pop("classifier.weight")
    save_file(weights, red_folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckerUnavailableError, match=r"do not fit: classifier\.weight"):
        load_checker(red_folder, CPU)
    save_file(
        {**weights, "classifier.weight": head[:, :2].contiguous()},
        red_folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    with pytest.raises(CheckerUnavailableError, match=str(red_folder)):
        load_checker(red_folder, CPU)


@pytest.mark.parametrize("model_type", ["no-such-model", "bert"])
def test_what_no_library_knows_is_refused(red_folder: Path, model_type: str) -> None:
    """Whatever the library raises, the operator is told of the folder; no code of it is run."""
    (red_folder / "evil.py").write_text("raise SystemExit('run')")
    _change_config(
        red_folder,
        model_type=model_type,
        auto_map={"AutoModelForImageClassification": "evil.Evil", "AutoConfig": "evil.Evil"},
    )
    with pytest.raises(CheckerUnavailableError, match=str(red_folder)):
        load_checker(red_folder, CPU)


def test_no_network_is_asked(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and checking open no connection and look up no name."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_checker(demo_model / "safety_checker", CPU).check(RED).flagged


def test_a_score_that_is_none_lets_nothing_pass(red_folder: Path) -> None:
    """NaN is below every threshold: weights that give it must not let images out."""
    weights = load_file(red_folder / WEIGHTS)
    weights["classifier.bias"].fill_(torch.nan)
    save_file(weights, red_folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckFailedError, match="nan"):
        load_checker(red_folder, CPU).check(BLUE)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("shapes"), CheckFailedError),
        (OSError("closed"), CheckFailedError),
        (torch.OutOfMemoryError("full"), OutOfMemoryError),
        (torch.AcceleratorError("lost", 0), DeviceLostError),
    ],
)
def test_an_error_lets_nothing_pass(
    red: NetworkChecker,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    expected: type[Exception],
) -> None:
    """It is raised in the pipeline's own words, so that the request fails as others do."""

    def fail(_: object) -> NoReturn:
        raise raised

    monkeypatch.setattr(red._scorer, "score", fail)
    with pytest.raises(expected):
        red.check(BLUE)


def test_a_second_look_is_asked_only_in_the_band(demo_model: Path) -> None:
    """It clears or flags what is near the threshold, and never hears of what is clear."""
    asked: list[Image.Image] = []

    def look(image: Image.Image) -> bool:
        asked.append(image)
        return image.getpixel((0, 0)) == (124, 0, 0)

    folder = demo_model / "safety_checker"
    checker = load_checker(folder, CPU, second_look=look, band=Band(certain_from=0.99))
    unsure = Image.new("RGB", SIZE, (124, 0, 0))  # 0.36
    fired = Image.new("RGB", SIZE, (139, 0, 0))  # 0.86
    assert checker.check(unsure).reason is Reason.NSFW_SECOND_LOOK
    assert checker.check(fired).reason is Reason.OK_SECOND_LOOK
    assert checker.check(RED).reason is Reason.NSFW
    assert checker.check(BLUE).reason is Reason.OK
    assert asked == [unsure, fired]


def test_a_second_look_that_fails_lets_nothing_pass(demo_model: Path) -> None:
    """Its errors are those of the check."""

    def look(_: Image.Image) -> bool:
        raise LookupError("no answer")

    checker = load_checker(demo_model / "safety_checker", CPU, second_look=look)
    with pytest.raises(CheckFailedError, match="no answer"):
        checker.check(Image.new("RGB", SIZE, (139, 0, 0)))


def test_an_unknown_tolerance_lets_nothing_pass(red: NetworkChecker) -> None:
    """A level that no threshold is known for is an error, not a guess."""
    with pytest.raises(CheckFailedError):
        red.check(BLUE, 6)


def test_the_options_of_the_runner_are_heard(demo_model: Path) -> None:
    """Folder, labels and threshold come from them; without them there is no checker."""
    assert make_checker(LoadOptions(model=demo_model)) is None
    safety = SafetyOptions(folder=demo_model / "safety_checker", threshold=0.9)
    checker = make_checker(LoadOptions(model=demo_model, device="cpu", safety=safety))
    assert checker is not None
    assert not checker.check(Image.new("RGB", SIZE, (139, 0, 0))).flagged
    assert checker.check(RED).flagged
