"""The wiring: no torch in the gateway, and refusals to start that say why."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from server.app import create_app
from server.errors import ConfigurationError
from server.settings import Settings


def test_importing_the_app_loads_no_torch() -> None:
    """The gateway process stays free of torch and everything that brings it."""
    script = (
        "import sys, server.app, server.cli\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("safety", ["required", "optional"])
def test_without_a_checker_it_starts_only_when_told_off(
    make_settings: Callable[..., Settings], safety: str
) -> None:
    """It refuses rather than report `false` for images that nobody looked at."""
    with pytest.raises(ConfigurationError, match="FLUX2_SAFETY=off"):
        create_app(make_settings(safety=safety))


def test_without_a_model_it_says_how_to_get_one(make_settings: Callable[..., Settings]) -> None:
    """The message leads a newcomer to the tiny checkpoint."""
    with pytest.raises(ConfigurationError, match="demo-model"):
        create_app(make_settings(model=None))
