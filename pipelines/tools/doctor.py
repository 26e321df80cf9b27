"""Says what this machine can do with a model: the folder, the software, the devices, the plans."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.errors import DoesNotFitError, ModelNotFoundError
from pipelines.folder import Kind, check_model_folder, read_kind
from pipelines.memory import Card, Verdict, choose_plan, explain
from pipelines.model_size import ModelSize, read_model_size
from pipelines.plan import PROFILE_NAMES, Plan
from pipelines.probe import probe_card
from pipelines.types import TURBO_LORA_PATH, Precision

PACKAGES = ("torch", "diffusers", "transformers")
"""What computes; whose versions make a difference."""

KERNELS = ("flash_attn_interface", "sageattention")
"""Modules of attention kernels that come in packages of their own."""

DRIVER = Path("/proc/driver/nvidia/version")
"""Where NVIDIA's kernel module tells its version, in a container too."""

Report = Mapping[str, Any]


def examine(options: argparse.Namespace) -> Report:
    """Find everything out and return it as JSON values. Nothing is loaded but torch itself.

    Raises nothing that is wrong with the machine or the model: that is in the report.
    """
    kind = _find_kind(options.model)
    has_flash = kind is None or kind.has_flash
    lora = (options.flash_lora or options.model / TURBO_LORA_PATH) if has_flash else None
    size, problems = _measure(options.model, lora)
    software, kernels = _look_at_software()
    return {
        "model": {
            "folder": str(options.model),
            "kind": kind.description if kind else None,
            "problems": problems,
            "parameters": _parameters(size) if size else None,
        },
        "flash_lora": {"path": str(lora), "bytes": size.lora_bytes if size else None}
        if lora
        else None,
        "software": software,
        "attention": kernels,
        "devices": [_look_at_device(name, size, options) for name in options.device or ["auto"]],
    }


def is_well(report: Report) -> bool:
    """Whether the model is whole and has a plan on every device that was looked at."""
    return not report["model"]["problems"] and all(
        device.get("plan") is not None for device in report["devices"]
    )


def _find_kind(folder: Path) -> Kind | None:
    """Return what the folder says that it is; that it says nothing is a problem told elsewhere."""
    try:
        return read_kind(folder)
    except ModelNotFoundError:
        return None


def _measure(folder: Path, flash_lora: Path | None) -> tuple[ModelSize | None, list[str]]:
    """Return the model's size, if its configuration can be read, and what is wrong with it."""
    problems: list[str] = []
    try:
        check_model_folder(folder)
    except ModelNotFoundError as error:
        problems += str(error).splitlines()
    try:
        return read_model_size(folder, flash_lora), problems
    except ModelNotFoundError as error:
        return None, problems or str(error).splitlines()


def _parameters(size: ModelSize) -> dict[str, int]:
    return {
        "transformer": size.transformer,
        "text_encoder": size.text_encoder,
        "vae": size.vae,
    }


def _look_at_software() -> tuple[dict[str, str | None], dict[str, bool]]:
    versions = {package: _version_of(package) for package in PACKAGES}
    kernels = {name: importlib.util.find_spec(name) is not None for name in KERNELS}
    driver = DRIVER.read_text(encoding="utf-8").splitlines()[0] if DRIVER.is_file() else None
    if versions["torch"]:
        import torch  # noqa: PLC0415  (a broken folder is told without it)

        backends: Any = torch.backends  # partly without types
        kernels["cudnn"] = backends.cudnn.is_available() and backends.cuda.cudnn_sdp_enabled()
        versions["cuda"] = torch.version.cuda
    return versions | {"driver": driver}, kernels


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _look_at_device(
    name: str, size: ModelSize | None, options: argparse.Namespace
) -> dict[str, Any]:
    try:
        card = probe_card(name)
    except (RuntimeError, AssertionError, ImportError) as error:  # as torch has it
        return {"device": name, "error": str(error).splitlines()[0], "plan": None}
    found: dict[str, Any] = {"device": name, "card": asdict(card), "plan": None, "profiles": []}
    if size:
        found |= _plans(card, size, options)
    return found


def _plans(card: Card, size: ModelSize, options: argparse.Namespace) -> dict[str, Any]:
    exact = None if options.dtype == "auto" else Precision(options.dtype)
    found: dict[str, Any] = {
        "profiles": [_row(verdict) for verdict in explain(card, size, exact_precision=exact)]
    }
    try:
        plan = choose_plan(card, size, options.profile, exact_precision=exact)
    except DoesNotFitError as error:
        return found | {"plan": None, "error": str(error)}
    return found | {"plan": asdict(plan) | {"largest_tokens": plan.largest_tokens}}


def _row(verdict: Verdict) -> dict[str, Any]:
    row = asdict(verdict)
    del row["plan"]
    return row


def write_text(report: Report) -> Iterator[str]:
    """Turn the report into lines for people."""
    model, lora = report["model"], report["flash_lora"]
    yield f"model: {model['folder']}"
    if model["kind"]:
        yield f"  kind: {model['kind']}"
    yield from (f"  problem: {problem}" for problem in model["problems"])
    if model["parameters"]:
        counts = model["parameters"].items()
        yield "  parameters: " + ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in counts)
    if lora:
        has_lora = f"{lora['bytes'] / 1e6:,.1f} MB" if lora["bytes"] else "missing"
        yield f"flash LoRA: {lora['path']} ({has_lora})"
    software = report["software"].items()
    yield "software: " + ", ".join(f"{name} {found or 'none'}" for name, found in software)
    kernels = report["attention"].items()
    yield "attention: " + ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in kernels)
    for device in report["devices"]:
        yield from _write_device(device)


def _write_device(device: Report) -> Iterator[str]:
    if "card" in device:
        card = Card(**device["card"])
        capability = "{}.{}".format(*card.capability) if card.capability else "none"
        yield (
            f"device {device['device']}: {card.name}, CUDA capability {capability}, "
            f"{card.free_bytes / 1e9:.1f} of {card.total_bytes / 1e9:.1f} GB free, "
            f"main memory {card.host_free_bytes / 1e9:.1f} GB free"
        )
    if device.get("error"):
        yield f"device {device['device']}: {device['error']}"
    if device["plan"]:
        values = dict(device["plan"])
        del values["largest_tokens"]
        yield f"  plan: {_describe(Plan(**values))}"
    for row in device.get("profiles", ()):
        yield f"  {row['profile']:>6}: {'fits' if row['fits'] else 'no'}: {row['why']}"


def _describe(plan: Plan) -> str:
    trees = [plan.exact_precision.value] if plan.exact else []
    trees += [plan.fast.value] if plan.fast else []
    return (
        f"{plan.profile}, blocks in {' and '.join(trees)} {plan.blocks}, text encoder "
        f"{plan.text_encoder}, flash LoRA {plan.flash or 'none'}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Say what fits on this machine. Exits with 1 if nothing does or the model is broken."""
    parser = argparse.ArgumentParser(prog="doctor", description=main.__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a diffusers folder")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--device", action="append", help="auto, cpu, cuda or cuda:N; may be repeated"
    )
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--flash-lora", type=Path, help="its file, if it is not in the folder")
    parser.add_argument("--profile", choices=PROFILE_NAMES, default="auto")
    options = parser.parse_args(arguments)
    report = examine(options)
    print(json.dumps(report, indent=2) if options.json else "\n".join(write_text(report)))
    return 0 if is_well(report) else 1


if __name__ == "__main__":
    sys.exit(main())
