"""What a folder says that it is a model of: by its index alone, and without torch."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.demonstration import DEMO_CHECKPOINT
from pipelines.errors import ModelNotFoundError
from pipelines.folder import Architecture, Kind, read_kind
from pipelines.types import Model


def write_index(folder: Path, **index: Any) -> Path:
    """Write an index with these values, and return its folder."""
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_dev_has_its_guidance_in_the_weights() -> None:
    """Its index does not say so, its pipeline has no other."""
    assert read_kind(DEMO_CHECKPOINT) == Kind(Architecture.DEV, is_distilled=True)


@pytest.mark.parametrize(
    ("written", "is_distilled"),
    [({"is_distilled": True}, True), ({"is_distilled": False}, False), ({}, False)],
)
def test_a_klein_says_whether_it_is_distilled(
    tmp_path: Path, written: dict[str, bool], is_distilled: bool
) -> None:
    """What is not written is false, as `Flux2KleinPipeline` takes it."""
    folder = write_index(tmp_path, _class_name="Flux2KleinPipeline", **written)
    assert read_kind(folder) == Kind(Architecture.KLEIN, is_distilled)


def test_each_kind_serves_its_own_models() -> None:
    """How large a klein is, its index does not say; whether it is a base model, it does."""
    served = {
        Kind(Architecture.DEV, True): {Model.DEV},
        Kind(Architecture.KLEIN, True): {Model.KLEIN_4B, Model.KLEIN_9B},
        Kind(Architecture.KLEIN, False): {Model.KLEIN_4B_BASE, Model.KLEIN_9B_BASE},
    }
    for kind, models in served.items():
        assert {model for model in Model if kind.can_serve(model)} == models


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing; is this a model in the diffusers layout"),
        ("{", "cannot be read"),
        ("[]", "a model for None, not for Flux2Pipeline or Flux2KleinPipeline"),
        ('{"_class_name": ["x"]}', "a model for .'x'., not for"),
        ('{"_class_name": "FluxPipeline"}', "a model for FluxPipeline, not for"),
    ],
)
def test_what_is_no_flux2_is_told(tmp_path: Path, content: str | None, message: str) -> None:
    """With the path of the index and what is wrong with it."""
    path = tmp_path / "model_index.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ModelNotFoundError, match=f"{path}: {message}"):
        read_kind(tmp_path)
