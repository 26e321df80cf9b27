"""Model folders at the start: whether each is what the operator says that it is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.types import Model
from server.errors import ConfigurationError
from server.gateway import check_settings
from server.settings import Settings


def test_a_folder_of_another_model_is_refused(
    make_settings: Callable[..., Settings], folders: dict[Model, Path]
) -> None:
    """At the start: its images would not be what is promised. What is only missing may yet come."""
    for model, folder in (
        (Model.DEV, folders[Model.KLEIN_4B]),
        (Model.KLEIN_4B, folders[Model.DEV]),
        (Model.KLEIN_4B_BASE, folders[Model.KLEIN_4B]),
    ):
        settings = make_settings(model=None, models={model: folder})
        with pytest.raises(ConfigurationError, match=f"so this is not {model}$"):
            check_settings(settings)
    check_settings(make_settings(model=None, models={**folders, Model.KLEIN_9B: Path("/none")}))


def test_one_folder_is_not_two_models(
    make_settings: Callable[..., Settings], folders: dict[Model, Path], tmp_path: Path
) -> None:
    """By whatever path: which size a klein has its index does not say, but not both."""
    link = tmp_path / "link"
    link.symlink_to(folders[Model.KLEIN_4B])
    settings = make_settings(model=None, models={**folders, Model.KLEIN_9B: link})
    with pytest.raises(ConfigurationError, match="klein-4b and klein-9b are one folder"):
        check_settings(settings)


def test_criteria_that_a_model_cannot_judge_are_refused(
    make_settings: Callable[..., Settings], folders: dict[Model, Path], tmp_path: Path
) -> None:
    """At the start, rather than with a model that is given up for one that can never be loaded."""
    criteria = tmp_path / "criteria.txt"
    criteria.write_text("has weapons\n", encoding="utf-8")
    settings = make_settings(model=None, models=folders, prompt_criteria=criteria)
    with pytest.raises(ConfigurationError, match="which klein-4b does not have"):
        check_settings(settings)
    check_settings(make_settings(model=folders[Model.DEV], prompt_criteria=criteria))
