"""The demonstration checkpoint: its files, and that what is asked for can be seen in its pictures.

The steps are few, so that the whole file costs little; how well it draws with all of them is
measured by `scripts/train_demo_model`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from pipelines.demonstration import DEMO_CHECKPOINT
from pipelines.flux2 import Flux2
from pipelines.folder import check_model_folder
from pipelines.tools.demo_model import TURBO_LORA_KEY, turbo_lora_layers
from pipelines.types import TURBO_LORA_PATH, GenerationRequest, GenerationSettings
from scripts.train_demo_model.meaning import Meaning, Subject
from scripts.train_demo_model.world import (
    COLOURS,
    Ground,
    Scene,
    Thing,
    colour_distance,
    draw,
    draw_mask,
)

Pixels = np.ndarray[Any, np.dtype[np.float64]]

SIDE = 512
STEPS, EDIT_STEPS = 6, 10
PROMPT = "a red circle"
GUIDANCE = 2.5
VISIBLE = 1.0
"""Mean absolute difference of two pictures, in steps of 255."""

WEIGHT_BYTES = 25_000_000
STORED = {"transformer": "BF16", "vae": "BF16", "text_encoder": "F32"}
"""The parts with weights, and their type in the file."""


@dataclass(frozen=True)
class Painter:
    """Draws pictures with one pipeline, on references that it writes to a folder."""

    pipeline: Flux2
    folder: Path

    def __call__(
        self,
        prompt: str = PROMPT,
        *,
        guidance: float = GUIDANCE,
        num_images: int = 1,
        steps: int = STEPS,
        references: tuple[Scene, ...] = (),
    ) -> list[Pixels]:
        """Return the pictures as height x width x RGB, from 0 to 255."""
        paths = []
        for index, scene in enumerate(references):
            paths.append(self.folder / f"{index}.png")
            draw(scene, SIDE, SIDE).save(paths[-1])
        request = GenerationRequest(
            request_id="test",
            prompt=prompt,
            seed=3,
            num_images=num_images,
            settings=GenerationSettings(
                width=SIDE, height=SIDE, num_inference_steps=steps, guidance_scale=guidance
            ),
            reference_images=tuple(paths),
        )
        images = self.pipeline.generate(request, lambda _step: None, lambda: False)
        return [to_pixels(image.image) for image in images]


@pytest.fixture(scope="module")
def paint(demonstration: Flux2, tmp_path_factory: pytest.TempPathFactory) -> Painter:
    """Return what draws with the demonstration checkpoint."""
    return Painter(demonstration, tmp_path_factory.mktemp("references"))


@pytest.fixture(scope="module")
def pair(paint: Painter) -> list[Pixels]:
    """Return a batch of two for a prompt that leaves place, size and ground open."""
    return paint(num_images=2)


def to_pixels(picture: Image.Image) -> Pixels:
    """Return a picture as numbers from 0 to 255."""
    return np.asarray(picture).astype(np.float64)


def difference(one: Pixels, other: Pixels) -> float:
    """Return the mean absolute difference, in steps of 255."""
    return float(np.abs(one - other).mean())


def share_of(name: str, pixels: Pixels) -> float:
    """Return the share of pixels to which this named colour is the nearest; looks at some."""
    sample = pixels.reshape(-1, 3)[::16]
    nearest = [
        min(COLOURS, key=lambda other: colour_distance(COLOURS[other], (red, green, blue)))
        for red, green, blue in sample.round().astype(int).tolist()
    ]
    return nearest.count(name) / len(nearest)


def dtypes_in(path: Path) -> dict[str, str]:
    """Return the type of every tensor in a safetensors file, but of counters."""
    with safe_open(path, "numpy") as file:
        found = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return {name: dtype for name, dtype in found.items() if not dtype.startswith("I")}


def test_the_folder_is_small_and_plain() -> None:
    """A clone stays quick, and nothing in it can run code."""
    check_model_folder(DEMO_CHECKPOINT)
    files = [path for path in DEMO_CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= WEIGHT_BYTES
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md"}


@pytest.mark.parametrize("part", STORED)
def test_weights_are_stored_as_the_real_ones_are(part: str) -> None:
    """Half the bytes for what computes in bfloat16 on a GPU; the encoder keeps what it needs."""
    (path,) = (DEMO_CHECKPOINT / part).glob("*.safetensors")
    assert set(dtypes_in(path).values()) == {STORED[part]}


def test_the_lora_has_the_layout_of_the_turbo_file(demonstration: Flux2) -> None:
    """A pair for each layer by the rule that the tiny checkpoint's follows, of shapes that fit."""
    layers = turbo_lora_layers(demonstration._pipe.transformer)
    keys = {
        TURBO_LORA_KEY.format(layer=layer, side=side): layer for layer in layers for side in "AB"
    }
    path = DEMO_CHECKPOINT / TURBO_LORA_PATH
    assert dtypes_in(path) == dict.fromkeys(keys, "BF16")
    with safe_open(path, "pt") as file:
        for name, layer in layers.items():
            down, up = (
                file.get_slice(TURBO_LORA_KEY.format(layer=name, side=side)).get_shape()
                for side in "AB"
            )
            assert (up[0], down[1]) == (layer.out_features, layer.in_features)
            assert up[1] == down[0]


def test_a_red_circle_is_red(pair: list[Pixels]) -> None:
    """In both pictures of a batch, by counting: some of each is red, and not most of it."""
    for pixels in pair:
        assert 0.03 < share_of("red", pixels) < 0.4


def test_a_red_circle_is_a_circle(pair: list[Pixels]) -> None:
    """By the checker that judges the training."""
    from scripts.train_demo_model.adherence import score_drawing

    meaning = Meaning("draw", Subject("circle", "red"))
    for pixels in pair:
        scores = score_drawing(meaning, Image.fromarray(pixels.astype(np.uint8)))
        assert (scores.object_colour, scores.shape, scores.count) == (True, True, True)


def test_a_batch_shows_different_pictures(pair: list[Pixels]) -> None:
    """What the prompt leaves open differs from image to image."""
    assert difference(*pair) > VISIBLE


def test_more_guidance_goes_further(paint: Painter, pair: list[Pixels]) -> None:
    """From no guidance to 2.5 to 5 the picture moves away from where it was."""
    without, strong = paint(guidance=1.0)[0], paint(guidance=5.0)[0]
    assert 0 < difference(without, pair[0]) < difference(without, strong)


@pytest.mark.parametrize(
    ("prompt", "place", "becomes"),
    [
        ("make the triangle blue", (0.73, 0.73), "blue"),
        ("add a red circle at the top", (0.5, 0.27), "red"),
    ],
)
def test_an_edit_changes_what_it_names_and_keeps_the_rest(
    paint: Painter, prompt: str, place: tuple[float, float], becomes: str
) -> None:
    """The thing gets its colour; ground and other things stay as they are."""
    triangle = Thing("triangle", COLOURS["pink"], 0.73, 0.73, 0.18)
    before = Scene(Ground("plain", COLOURS["yellow"], COLOURS["yellow"]), (triangle,))
    (after,) = paint(prompt, steps=EDIT_STEPS, references=(before,))
    named = Thing("circle", COLOURS[becomes], *place, 0.06)
    assert share_of(becomes, after[to_pixels(draw_mask(named, SIDE, SIDE)) == 255]) > 0.8
    around = draw_mask(replace(named, radius=0.25), SIDE, SIDE)
    untouched = to_pixels(around) == 0
    error = np.abs(after - to_pixels(draw(before, SIDE, SIDE)))[untouched].mean() / 255
    assert error <= 0.05


def test_the_order_of_references_counts(paint: Painter) -> None:
    """Two references the other way round give another picture."""
    references = tuple(
        Scene(Ground("plain", COLOURS[ground], COLOURS[ground]), (star,))
        for ground, star in (
            ("cyan", Thing("star", COLOURS["red"], 0.25, 0.25, 0.15)),
            ("yellow", Thing("star", COLOURS["blue"], 0.75, 0.75, 0.15)),
        )
    )
    prompt = "put the star from image 2 into image 1"
    (one,) = paint(prompt, references=references)
    (other,) = paint(prompt, references=references[::-1])
    assert difference(one, other) > 10 * VISIBLE
