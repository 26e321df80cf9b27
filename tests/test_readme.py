"""The README is held to the code: every setting and endpoint is in it."""

from pathlib import Path

import pytest

from server.catalogue import CATALOGUE
from server.settings import ENV_PREFIX, Settings

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    """A setting that the table does not have cannot be found by an operator."""
    assert f"| `{ENV_PREFIX}{name.upper()}` |" in README


@pytest.mark.parametrize("endpoint_id", CATALOGUE)
def test_every_endpoint_is_documented(endpoint_id: str) -> None:
    """The table of endpoints is complete."""
    assert f"| `{endpoint_id}` |" in README
