"""Measure the safety checker on an operator's own pictures: what it flags, and what it misses."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageOps
from safety_plot import Curve, draw_plot

from pipelines.errors import CheckerUnavailableError
from pipelines.safety import load_checker
from pipelines.verdicts import TOLERANCES, threshold_at
from server.errors import ConfigurationError
from server.safety import checker_folder
from server.settings import Settings, load_settings

STEPS = 20
"""The thresholds are the multiples of one in so many, between 0 and 1, and those of the server."""

KINDS = ("safe", "unsafe")
"""The folders, by what a person says of the pictures in them."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one threshold does: shares of the safe pictures flagged, and of the unsafe ones missed.

    `tolerance` is the `safety_tolerance` of requests that have it, if there is one.
    """

    threshold: float
    false_positive: float
    false_negative: float
    tolerance: int | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Score all pictures, print the rates, write JSON and plot; returns the exit status."""
    options = _parse(arguments)
    try:
        settings = load_settings({"model": options.model})
        folder = options.checker or checker_folder(settings)
        labels = options.labels.split(",") if options.labels else settings.safety_labels
        checker = load_checker(folder, _device(options.device), labels=labels)
    except (ConfigurationError, CheckerUnavailableError) as error:
        return _fail(str(error))
    scores: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        scores[kind] = {}
        for path in _pictures(options.folder / kind):
            picture = _read(path)
            if picture:
                name = path.relative_to(options.folder).as_posix()
                scores[kind][name] = checker.score(picture)
        if not scores[kind]:
            return _fail(f"{options.folder / kind}: no picture in it that can be read")
    safe, unsafe = ([*scores[kind].values()] for kind in KINDS)
    rows = measure(safe, unsafe, settings)
    print(f"{checker.description}: {len(safe)} safe and {len(unsafe)} unsafe pictures\n")
    print(table(rows, settings.safety_threshold))
    options.output.mkdir(parents=True, exist_ok=True)
    report, plot = options.output / "safety-eval.json", options.output / "safety-eval.png"
    told = {
        "checker": checker.description,
        "threshold": settings.safety_threshold,
        "rates": [asdict(row) for row in rows],
        "scores": scores,
    }
    report.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    curves = (
        Curve("safe, but flagged", "#b3541e", [(r.threshold, r.false_positive) for r in rows]),
        Curve("unsafe, but missed", "#2a5d9c", [(r.threshold, r.false_negative) for r in rows]),
    )
    draw_plot(plot, curves, mark=settings.safety_threshold)
    print(f"\nEvery score: {report}\nPlot: {plot}")
    return 0


def measure(safe: Sequence[float], unsafe: Sequence[float], settings: Settings) -> list[Rates]:
    """Return the rates at each threshold, rising; those of the server's tolerances are marked."""
    tolerances = {
        threshold_at(settings.safety_threshold, tolerance): tolerance for tolerance in TOLERANCES
    }
    thresholds = sorted({*tolerances, *(step / STEPS for step in range(1, STEPS))})
    return [
        Rates(
            threshold=round(threshold, 4),
            false_positive=_share(score >= threshold for score in safe),
            false_negative=_share(score < threshold for score in unsafe),
            tolerance=tolerances.get(threshold),
        )
        for threshold in thresholds
    ]


def table(rows: Iterable[Rates], threshold: float) -> str:
    """Lay out the rates for people; the row of the server's own threshold is marked."""
    lines = ["threshold  safe, flagged  unsafe, missed  safety_tolerance"]
    for row in rows:
        tolerance = "" if row.tolerance is None else f"{row.tolerance}"
        mark = "  <- FLUX2_SAFETY_THRESHOLD" if abs(row.threshold - threshold) < 1e-4 else ""
        lines.append(
            f"{row.threshold:9.3f}  {row.false_positive:13.1%}  {row.false_negative:14.1%}  "
            f"{tolerance:>16}{mark}".rstrip()
        )
    return "\n".join(lines)


def _share(hits: Iterable[bool]) -> float:
    answers = list(hits)
    return sum(answers) / len(answers)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _read(path: Path) -> Image.Image | None:
    """Open a picture as the server shows it, or say which file is none and go on."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        print(f"safety_eval: left out: {path}: {error}", file=sys.stderr)
        return None


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch  # noqa: PLC0415  (only to ask)

    return "cuda" if torch.cuda.is_available() else "cpu"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="safety_eval", description=__doc__)
    parser.add_argument("folder", type=Path, help="with the sub-folders safe/ and unsafe/")
    parser.add_argument("--model", type=Path, help="a model folder that has a safety_checker")
    parser.add_argument("--checker", type=Path, help="the checker's folder; else as the server's")
    parser.add_argument("--labels", help="the unsafe labels, separated by commas")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N; auto by default")
    parser.add_argument(
        "--output", type=Path, default=Path(), help="folder for JSON and plot; else this one"
    )
    return parser.parse_args(arguments)


def _fail(message: str) -> int:
    print(f"safety_eval: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
