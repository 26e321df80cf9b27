"""The real command on this machine, and what it says of machines that are described to it."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.attention import PACKAGES as KERNEL_PACKAGES
from pipelines.demonstration import DEMO_CHECKPOINT
from pipelines.memory import Card
from pipelines.plan import PROFILE_NAMES
from pipelines.probe import host_free_bytes, probe_card
from pipelines.tools import doctor
from pipelines.types import TURBO_LORA_PATH
from tests.pipelines.test_memory import make_card

COMMAND = Path(sys.executable).parent / "flux2-serve"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `flux2-serve doctor` on the CPU, whatever else this machine has."""
    environment = {"FLUX2_DEVICES": "cpu", "FLUX2_SAFETY": "off", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [COMMAND, "doctor", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )


def report_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], card: Card, *more: str
) -> tuple[int, Any]:
    """Examine the demonstration checkpoint as if the machine had this card."""
    monkeypatch.setattr(doctor, "probe_card", lambda _name: card)
    code = doctor.main(["--model", str(DEMO_CHECKPOINT), "--json", *more])
    return code, json.loads(capsys.readouterr().out)


def test_it_tells_people_what_fits(demo_model: Path) -> None:
    """Folder, LoRA, software, device, plan, and a line for each profile."""
    done = run("--model", demo_model)

    assert done.returncode == 0, done.stderr
    assert f"model: {demo_model}\n" in done.stdout
    assert f"flash LoRA: {demo_model / TURBO_LORA_PATH} (0.1 MB)" in done.stdout
    for line in (
        r"software: torch 2\.\d+\S*, diffusers \S+, transformers \S+, cuda \S+, driver .+",
        r"attention: flash_attn_interface (yes|no), sageattention (yes|no), cudnn (yes|no)",
        r"device cpu: .* GB free, main memory [\d.]+ GB free",
    ):
        assert re.search(f"^{line}$", done.stdout, re.MULTILINE)
    assert "  plan: cpu, blocks in float32 resident, text encoder resident, " in done.stdout
    for profile in PROFILE_NAMES[1:]:
        fits = "fits" if profile == "cpu" else "no"
        assert re.search(rf"^ +{profile}: {fits}: \S", done.stdout, re.MULTILINE)


def test_it_tells_programs_the_same(demo_model: Path) -> None:
    """As one JSON object, with every number in bytes."""
    done = run("--model", demo_model, "--json")

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"]["problems"] == []
    assert report["flash_lora"]["bytes"] == (demo_model / TURBO_LORA_PATH).stat().st_size
    (device,) = report["devices"]
    assert device["card"]["kind"] == "cpu"
    assert device["plan"]["profile"] == "cpu"
    assert device["plan"]["largest_tokens"] > 0
    assert [row["profile"] for row in device["profiles"]] == list(PROFILE_NAMES[1:])
    assert [row["fits"] for row in device["profiles"]] == [False] * 6 + [True]


def test_a_broken_folder_is_told_file_by_file(demo_model: Path, tmp_path: Path) -> None:
    """Missing and cut files are named, and what can still be said of the machine is said."""
    folder = tmp_path / "broken"
    shutil.copytree(demo_model, folder)
    (folder / TURBO_LORA_PATH).unlink()
    (folder / "vae" / "config.json").unlink()
    weights = folder / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    done = run("--model", folder)
    assert done.returncode == 1
    assert f"  problem: {folder / 'vae' / 'config.json'}: missing\n" in done.stdout
    assert f"  problem: {weights}: cut short" in done.stdout
    assert f"flash LoRA: {folder / TURBO_LORA_PATH} (missing)" in done.stdout
    assert "device cpu: " in done.stdout
    assert "plan" not in done.stdout


def test_a_folder_that_is_whole_may_still_be_no_flux2(
    demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration that says nothing is a problem like a missing file."""
    folder = tmp_path / "other"
    shutil.copytree(demo_model, folder)
    (folder / "text_encoder" / "config.json").write_text("{}")

    assert doctor.main(["--model", str(folder), "--device", "cpu"]) == 1
    assert "config.json: not a configuration of FLUX.2" in capsys.readouterr().out


def test_a_card_is_planned_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the profile and the precision that are asked for, and each device by itself."""
    asked = ["--profile", "48gb", "--dtype", "float32", "--device", "cuda:0", "--device", "cuda:1"]
    code, report = report_on(monkeypatch, capsys, make_card(48), *asked)

    assert code == 0
    assert [device["device"] for device in report["devices"]] == ["cuda:0", "cuda:1"]
    plan = report["devices"][0]["plan"]
    assert (plan["profile"], plan["exact_precision"], plan["fast"]) == ("48gb", "float32", "fp8")


def test_a_card_is_described_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its capability and memory, and both kinds of blocks."""
    monkeypatch.setattr(doctor, "probe_card", lambda _name: make_card(48))

    assert doctor.main(["--model", str(DEMO_CHECKPOINT)]) == 0
    out = capsys.readouterr().out
    assert "device auto: a card of 48 GB, CUDA capability 8.9, 47.6 of 48.3 GB free, " in out
    assert "  plan: 141gb, blocks in bfloat16 and fp8 resident, text encoder resident, " in out


def test_a_card_that_is_too_small_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a gigabyte is too little even for the demonstration checkpoint and the overhead."""
    card = dataclasses.replace(make_card(24), free_bytes=5 * 10**8)
    code, report = report_on(monkeypatch, capsys, card)

    assert code == 1
    assert report["devices"][0]["error"].startswith("profile 24gb on a card of 24 GB: ")
    assert not any(row["fits"] for row in report["devices"][0]["profiles"])


def test_a_device_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """It says what torch says, and the rest is said all the same."""
    code = doctor.main(["--model", str(DEMO_CHECKPOINT), "--device", "cuda:99"])

    assert code == 1
    out = capsys.readouterr().out
    assert re.search(r"^device cuda:99: \S", out, re.MULTILINE)
    assert "flash LoRA: " in out


def test_kernels_are_those_that_can_be_chosen() -> None:
    """What the doctor looks for is what `pipelines.attention` would take."""
    assert set(doctor.KERNELS) == set(KERNEL_PACKAGES.values())


def test_the_cpu_has_main_memory_alone() -> None:
    """What is free there is what is free at all."""
    card = probe_card("cpu")

    assert card.kind == "cpu"
    assert card.capability is None
    assert 0 < card.free_bytes == card.host_free_bytes <= card.total_bytes


def test_main_memory_is_what_the_container_may_have(tmp_path: Path) -> None:
    """The machine's, or what is left of the group's limit if that is less."""
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       16000 kB\nMemAvailable:    8000 kB\n")
    free_bytes = 8000 * 1024

    assert host_free_bytes(info, tmp_path) == free_bytes
    (tmp_path / "memory.current").write_text("1000000\n")
    for limit, expected in (("max", free_bytes), ("3000000", 2_000_000), ("999999", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert host_free_bytes(info, tmp_path) == expected

    info.write_text("MemTotal:       16000 kB\n")
    with pytest.raises(RuntimeError, match="does not say what is available"):
        host_free_bytes(info, tmp_path)
