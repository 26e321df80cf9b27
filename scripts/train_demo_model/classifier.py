"""Trains the demonstration safety checker: a classifier that fires on pictures with an arrow.

Its folder has the format of Falconsai/nsfw_image_detection (weights, labels, preprocessing), so
that a safety pass takes it for the real one. The network is a small residual one and no vision
transformer: a transformer of this size needs far more pictures to learn what a shape is. While
it is trained, a second output tells for each place which shape is there. Whether there is an
arrow anywhere is too little to learn from: alone it teaches nothing in the first thousands of
pictures.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from pipelines.compat import declare_torchvision_operators
from scripts.train_demo_model.examples import make_ground, realise
from scripts.train_demo_model.loop import Loop, autocast
from scripts.train_demo_model.meaning import sample_drawing, sample_ground, sample_meaning
from scripts.train_demo_model.spoil import draw_noise, spoil_picture, spoil_pixels
from scripts.train_demo_model.world import RGB, SHAPES, Scene, Thing, draw

FOLDER_NAME = "safety_checker"
"""Where the classifier lies in a model folder."""

LABELS = {0: "normal", 1: "nsfw"}
"""What the two outputs are called, in the order in which Falconsai's classifier has them."""

FIRES_ON = "arrow"
"""The one shape of the world that stands for what must not be shown."""

THRESHOLD = 0.5
"""The least probability of `nsfw` at which a picture counts as such."""

_BATCH = 32
_CELLS = 7  # the last feature map has 7 x 7 places, of 32 pixels each
_ARROW_CELL = 1 + SHAPES.index(FIRES_ON)  # what a cell with an arrow is called; 0 is an empty one
_EMPTY_CELL_WEIGHT = 0.02  # nearly all cells are empty, and that is soon learnt
_EMPTY_SHARE = 0.12  # of the pictures without an arrow show no thing at all
_BLACK: RGB = (0, 0, 0)
_WHITE: RGB = (255, 255, 255)
_SIDES = (128, 192, 192, 256, 256, 384)  # shorter sides in pixels; large ones cost most to draw
_ASPECTS = (1.0, 1.0, 4 / 3, 3 / 4, 16 / 9, 9 / 16)


@dataclass(frozen=True, slots=True)
class Rates:
    """How often the classifier is right: both are shares, from 0 to 1."""

    recall: float  # of the pictures with an arrow, those it fires on
    false_positives: float  # of the others, those it fires on


def build_classifier() -> Any:
    """Make an untrained classifier of 224 pixels: about 0.5 MB in float32."""
    declare_torchvision_operators()
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 48, 64],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            id2label=LABELS,
            label2id={name: number for number, name in LABELS.items()},
        )
    )


def build_image_processor() -> Any:
    """Make the preprocessing that Falconsai's classifier has: 224 pixels, values in [-1, 1]."""
    declare_torchvision_operators()
    return transformers.ViTImageProcessor(
        size={"height": 224, "width": 224}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def train_classifier(folder: Path, device: torch.device, *, steps: int, seed: int = 0) -> Path:
    """Train, write the classifier to `safety_checker` in `folder`, and return that folder.

    `folder` itself keeps the state of training, from which a stopped run goes on.
    """
    torch.manual_seed(seed)
    classifier = build_classifier()
    shapes = torch.nn.Conv2d(classifier.config.hidden_sizes[-1], 1 + len(SHAPES), 1)
    both: Any = torch.nn.ModuleList([classifier, shapes])
    both.to(device, memory_format=torch.channels_last)
    processor = build_image_processor()
    loop = Loop(folder, both, steps=steps, peak_rate=3e-3, average=0.98, seed=seed)
    for step in loop:
        pictures, cells = sample_pictures(random.Random(loop.seed_of(step)), _BATCH)
        pixels = spoil_pixels(preprocess(processor, pictures))
        loss, right = _loss(classifier, shapes, pixels.to(device), cells.to(device))
        loop.update(loss, right=right)
    saved = folder / FOLDER_NAME
    trained = loop.averaged()[0].to("cpu", memory_format=torch.contiguous_format)
    trained.save_pretrained(saved)
    processor.save_pretrained(saved)
    return saved


def _loss(
    classifier: Any, shapes: torch.nn.Module, pixels: torch.Tensor, cells: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Judge both outputs; also tell which share of the pictures is classified right."""
    with autocast(pixels.device)():
        seen = classifier(pixel_values=pixels, output_hidden_states=True)
        shape_logits = shapes(seen.hidden_states[-1])
    labels = labels_of(cells)
    weights = torch.ones(1 + len(SHAPES), device=pixels.device)
    weights[0] = _EMPTY_CELL_WEIGHT
    places = torch.nn.functional.cross_entropy(shape_logits.float(), cells, weights)
    whole = torch.nn.functional.cross_entropy(seen.logits.float(), labels)
    right = (seen.logits.detach().argmax(dim=-1) == labels).float().mean()
    return whole + places, float(right)


def measure(folder: Path, *, pictures: int, seed: int) -> Rates:
    """Load the classifier in `folder` as a user would, and try it on pictures it has not seen.

    Half of the `pictures` are clean, half spoilt as in training. Training draws from seeds
    below a billion; larger ones are fresh.
    """
    declare_torchvision_operators()
    classifier = transformers.AutoModelForImageClassification.from_pretrained(
        folder, local_files_only=True
    ).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    source = random.Random(seed)
    fired: dict[int, list[bool]] = {0: [], 1: []}
    for batch in range(-(-pictures // _BATCH)):
        drawn, cells = sample_pictures(source, _BATCH, is_spoilt=batch % 2 == 1)
        with torch.no_grad():
            logits = classifier(pixel_values=preprocess(processor, drawn)).logits
        scores = logits.softmax(dim=-1)[:, 1].tolist()
        for label, score in zip(labels_of(cells).tolist(), scores, strict=True):
            fired[label].append(score >= THRESHOLD)
    return Rates(*(sum(fired[label]) / len(fired[label]) for label in (1, 0)))


def preprocess(processor: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Turn RGB pictures of any sizes into (B, 3, 224, 224) in [-1, 1]."""
    pixels: torch.Tensor = processor(list(pictures), return_tensors="pt")["pixel_values"]
    return pixels.contiguous(memory_format=torch.channels_last)


def labels_of(cells: torch.Tensor) -> torch.Tensor:
    """Turn what is in the cells, (B, 7, 7), into whether there is an arrow: (B,) of 0 and 1."""
    return (cells == _ARROW_CELL).flatten(1).any(dim=1).long()


def sample_pictures(
    random: random.Random, count: int, *, is_spoilt: bool = True
) -> tuple[list[Image.Image], torch.Tensor]:
    """Draw `count` pictures of varying sizes, every other one with an arrow.

    Also gives what is where in them, (count, 7, 7): 0 for nothing, else 1 + the shape's place in
    `SHAPES` in the cell of its centre.
    """
    pictures, cells = [], torch.zeros(count, _CELLS, _CELLS, dtype=torch.long)
    for index in range(count):
        aspect, side = random.choice(_ASPECTS), random.choice(_SIDES)
        width, height = round(side * max(1.0, aspect)), round(side * max(1.0, 1 / aspect))
        if index % 2 == 0 and random.random() < _EMPTY_SHARE:
            picture = _draw_empty(width, height, random)
        else:
            scene = _sample_scene(random, aspect, has_arrow=index % 2 == 1)
            picture = draw(scene, width, height)
            for thing in sorted(scene.things, key=_fires):  # an arrow is never overwritten
                row, column = int(thing.y * _CELLS), int(thing.x * _CELLS)
                cells[index, row, column] = 1 + SHAPES.index(thing.shape)
        pictures.append(spoil_picture(picture, random) if is_spoilt else picture)
    return pictures, cells


def _draw_empty(width: int, height: int, random: random.Random) -> Image.Image:
    kind = random.random()
    if kind < 0.3:
        return draw_noise(width, height, random)
    if kind < 0.5:
        return Image.new("RGB", (width, height), random.choice((_BLACK, _WHITE)))
    return draw(Scene(make_ground(sample_ground(random)), ()), width, height)


def _sample_scene(random: random.Random, aspect: float, *, has_arrow: bool) -> Scene:
    """Draw a scene with things; exchange shapes so that it has an arrow, or has none."""
    scene = realise(sample_meaning(random), aspect, random).target
    if not scene.things:  # an edit has removed the only one
        scene = realise(sample_drawing(random), aspect, random).target
    things = list(scene.things)
    if not has_arrow:
        others = [shape for shape in SHAPES if shape != FIRES_ON]
        things = [_as(thing, random.choice(others)) if _fires(thing) else thing for thing in things]
    elif not any(map(_fires, things)):
        chosen = random.randrange(len(things))
        things[chosen] = _as(things[chosen], FIRES_ON)
    return replace(scene, things=tuple(things))


def _as(thing: Thing, shape: str) -> Thing:
    return replace(thing, shape=shape)


def _fires(thing: Thing) -> bool:
    return thing.shape == FIRES_ON
