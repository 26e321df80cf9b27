"""Commands about model folders, where there are several models."""

import subprocess
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.demonstration import DEMO_CHECKPOINT
from server.cli import app

ENVIRONMENT = {
    "FLUX2_MODEL": "/models/dev",
    "FLUX2_MODELS": "klein-4b=/models/klein",
    "FLUX2_DEVICES": "cuda:0,cuda:1=klein-4b",
    "FLUX2_FLASH_LORA": "/models/turbo.safetensors",
    "COLUMNS": "200",
}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return what is run, which ends with 0 for the first and with 1 for each after it."""
    ran: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, returncode=min(1, len(ran) - 1))

    monkeypatch.setattr(subprocess, "run", run)
    return ran


def test_the_doctor_looks_at_each(commands: list[list[str]]) -> None:
    """With the devices that may load it; one that is ill is told by the exit status."""
    result = CliRunner().invoke(app, ["doctor"], env=ENVIRONMENT)
    assert result.exit_code == 1
    dev, klein = (" ".join(command) for command in commands)
    assert "--model /models/dev" in dev
    assert "--device=cuda:0" in dev
    assert "--device=cuda:1" not in dev
    assert "--flash-lora=/models/turbo.safetensors" in dev
    assert "--model /models/klein" in klein
    assert "--device=cuda:0 --device=cuda:1" in klein
    assert "--flash-lora" not in klein


def test_a_killed_look_is_no_good_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it drowned by what was found to be well: a signal's status is below zero."""
    codes = iter((-9, 0))

    def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, returncode=next(codes))

    monkeypatch.setattr(subprocess, "run", run)
    assert CliRunner().invoke(app, ["doctor"], env=ENVIRONMENT).exit_code != 0


def test_a_folder_on_the_command_line_stands_for_itself(commands: list[list[str]]) -> None:
    """Whatever the settings name, it alone is looked at, or quantised."""
    for command in (["doctor"], ["weights", "quantize"]):
        CliRunner().invoke(app, [*command, "--model", "/models/other"], env=ENVIRONMENT)
    assert len(commands) == 2
    assert all("/models/other" in command for command in commands)
    assert {"--device=cuda:0", "--device=cuda:1"} <= set(commands[0])


def test_none_is_the_demonstration_checkpoint(commands: list[list[str]]) -> None:
    """On the command line too."""
    CliRunner().invoke(app, ["doctor", "--model", "none"], env=ENVIRONMENT)
    assert str(DEMO_CHECKPOINT) in commands[0]


def test_one_of_several_must_be_named(commands: list[list[str]]) -> None:
    """Nothing is written into a folder that nobody chose."""
    result = CliRunner().invoke(app, ["weights", "quantize"], env=ENVIRONMENT)
    assert result.exit_code == 2
    assert "say which folder with --model" in result.output
    assert commands == []
