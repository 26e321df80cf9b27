"""Measures how well a checkpoint does what it is asked, on the held-out prompts and edits.

`python -m scripts.train_demo_model.evaluate FOLDER` draws every one of them with a plain
`Flux2Pipeline`, scores the pictures, prints a table, and writes a report and a contact sheet.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.compat import declare_torchvision_operators
from pipelines.types import TURBO_LORA_PATH
from scripts.train_demo_model.drawing import Outcome, Settings, evaluate_pipeline
from scripts.train_demo_model.flash import TURBO_SIGMAS
from scripts.train_demo_model.heldout import HeldDrawing, HeldEdit, load_held_out
from scripts.train_demo_model.report import draw_sheet, format_report, write_report


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker process does; the pictures of all shares are the whole."""

    folder: Path
    flash: bool
    dtype: torch.dtype
    settings: Settings
    drawings: tuple[HeldDrawing, ...]
    edits: tuple[HeldEdit, ...]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Raises what diffusers raises for a folder that it cannot load."""
    options = _parse(arguments)
    width, height = options.size
    steps, sigmas = (len(TURBO_SIGMAS), TURBO_SIGMAS) if options.flash else (options.steps, None)
    settings = Settings(steps, options.guidance, width, height, sigmas)
    held = load_held_out()
    drawings, edits = held.drawings[: options.drawings], held.edits[: options.edits]
    shares = [
        Share(
            options.folder,
            options.flash,
            getattr(torch, options.dtype),
            settings,
            drawings[start :: options.processes],
            edits[start :: options.processes],
        )
        for start in range(options.processes)
    ]
    outcomes = _draw_shares(shares)
    print(format_report(outcomes))
    if options.out:
        write_report(options.out, outcomes, settings)
    if options.sheet:
        draw_sheet(outcomes).save(options.sheet)


def load_pipeline(folder: Path, *, flash: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """Load the folder as a plain script would; with `flash` also its few-step LoRA."""
    declare_torchvision_operators()
    import diffusers  # noqa: PLC0415  (must come after the declaration)
    import transformers  # noqa: PLC0415

    # A line for each picture about how diffusers calls the tokenizer would hide the table.
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    pipeline = diffusers.Flux2Pipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    if flash:
        path = folder / TURBO_LORA_PATH
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _draw_shares(shares: list[Share]) -> list[Outcome]:
    """Work on all shares at once; the outcomes come drawings first, in the stored order."""
    if len(shares) == 1:
        results = [_work(shares[0])]
    else:
        # A forked child would inherit torch's thread pools without their threads.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(shares), mp_context=spawn) as pool:
            results = list(pool.map(_work, shares))
    outcomes = [outcome for result in results for outcome in result]
    places = {entry.caption: place for place, entry in enumerate(_list_entries())}
    return sorted(outcomes, key=lambda outcome: places[outcome.entry.caption])


def _list_entries() -> tuple[HeldDrawing | HeldEdit, ...]:
    held = load_held_out()
    return (*held.drawings, *held.edits)


def _work(share: Share) -> list[Outcome]:
    torch.set_num_threads(1)
    pipeline = load_pipeline(share.folder, flash=share.flash, dtype=share.dtype)
    return evaluate_pipeline(pipeline, share.drawings, share.edits, share.settings)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint that Flux2Pipeline loads")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--size", type=_parse_size, default=(512, 512), metavar="WIDTHxHEIGHT")
    parser.add_argument("--flash", action="store_true", help="few steps with the folder's LoRA")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="the server takes float32 on a CPU and bfloat16 on a GPU",
    )
    parser.add_argument("--drawings", type=int, help="how many of the held-out prompts")
    parser.add_argument("--edits", type=int, help="how many of the held-out edits")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--out", type=Path, help="where the report goes, as JSON")
    parser.add_argument("--sheet", type=Path, help="where the contact sheet goes, as PNG")
    return parser.parse_args(arguments)


def _parse_size(words: str) -> tuple[int, int]:
    width, height = (int(side) for side in words.split("x"))
    return width, height


if __name__ == "__main__":
    main()
