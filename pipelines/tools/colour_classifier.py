"""Writes a safety checker for tests: a real vision transformer that fires on red.

Its weights are set by hand, so that what it says can be foreseen: the score is a smooth step of
how red a picture is on the whole. Layout, classes and preprocessing are those of
Falconsai/nsfw_image_detection; it protects nobody.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image, ImageStat

from pipelines.compat import declare_torchvision_operators
from pipelines.tools.model_parts import whole_folder

LABELS = {0: "normal", 1: "nsfw"}
"""What its two outputs are called."""

BOUND = 0.5
"""How red a picture must be on the whole to be flagged, by default: pure red is 1, grey is 0."""

_SIDE, _PATCH = 32, 16
_STEEPNESS = 40.0  # at 0.1 beyond the bound the score is 0.98
_CARRIER = 30.0  # beside it the signal is so small that the norms hardly bend it
_RED, _ANTI, _PLUS, _MINUS = range(4)


def write_colour_classifier(folder: Path, bound: float = BOUND) -> None:
    """Write the checker: a few kilobytes, the same bytes for the same bound.

    Raises OSError if the folder is there and not empty.
    """
    declare_torchvision_operators()
    with whole_folder(folder) as unfinished:
        _build_network(bound).save_pretrained(unfinished)
        transformers.ViTImageProcessor(
            size={"height": _SIDE, "width": _SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ).save_pretrained(unfinished)
        mode = (unfinished / "config.json").stat().st_mode
        for weights in unfinished.glob("*.safetensors"):
            weights.chmod(mode)  # safetensors keeps its files from other users


def redness(image: Image.Image) -> float:
    """Tell how red a picture is on the whole, from -1 to 1: what the checker's bound is about."""
    red, green, blue = ImageStat.Stat(image.convert("RGB")).mean
    return (red - (green + blue) / 2) / 255


@torch.no_grad()
def _build_network(bound: float) -> Any:
    """Set the weights: patches carry how red they are, the first token takes their mean.

    Four numbers for each token: the signal, a constant, and both once more with the other sign, so
    that a norm finds no mean and an all but constant length.
    """
    network: Any = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=4,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=_SIDE,
            patch_size=_PATCH,
            id2label=LABELS,
            label2id={name: number for number, name in LABELS.items()},
        )
    )
    for name, parameter in network.named_parameters():
        parameter.fill_(1.0 if "layernorm" in name and name.endswith("weight") else 0.0)
    embeddings, (layer,) = network.vit.embeddings, network.vit.layers
    patches = embeddings.patch_embeddings.projection
    for channel, share in enumerate((1.0, -0.5, -0.5)):
        # Halved, because preprocessing spreads 0 to 1 over -1 to 1.
        patches.weight[_RED, channel] = share / 2 / _PATCH**2
        patches.weight[_ANTI, channel] = -share / 2 / _PATCH**2
    for constants in (patches.bias, embeddings.cls_token[0, 0]):
        constants[_PLUS], constants[_MINUS] = _CARRIER, -_CARRIER
    length = _CARRIER / 2**0.5  # what a norm divides by, and is multiplied with again
    layer.attention.v_proj.weight[_RED, _RED] = length
    # No query prefers any key: each token has an equal share, also the first, which is not red.
    count = (_SIDE // _PATCH) ** 2
    layer.attention.o_proj.weight[_RED, _RED] = (count + 1) / count
    layer.attention.o_proj.weight[_ANTI, _RED] = -(count + 1) / count
    network.classifier.weight[1, _RED] = _STEEPNESS * length
    network.classifier.bias[1] = -_STEEPNESS * bound
    return network


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a safety checker that fires on red. Exits with 2 if something is in its place."""
    parser = argparse.ArgumentParser(prog="colour-classifier", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where to write it; must be empty or new")
    parser.add_argument("--bound", type=float, default=BOUND, help="how red a picture must be")
    options = parser.parse_args(arguments)
    transformers.logging.disable_progress_bar()  # in this process only, which ends here
    try:
        write_colour_classifier(options.folder, options.bound)
    except OSError as error:
        print(f"colour-classifier: {error}", file=sys.stderr)
        return 2
    print(f"a checker that fires on red is now in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
