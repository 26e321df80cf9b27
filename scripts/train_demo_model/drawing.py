"""Draws held-out prompts and edits with a pipeline, and scores each picture at once."""

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from scripts.train_demo_model.adherence import (
    EditScores,
    Rate,
    Scores,
    score_drawing,
    score_edit,
    summarise,
    summarise_edits,
)
from scripts.train_demo_model.heldout import HeldDrawing, HeldEdit
from scripts.train_demo_model.world import draw


@dataclass(frozen=True, slots=True)
class Settings:
    """How to draw; sizes are in pixels, and `sigmas` overrides the pipeline's own schedule."""

    steps: int = 28
    guidance: float = 2.5
    width: int = 512
    height: int = 512
    sigmas: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One picture: what was asked, what it came from, how it scored, and how long it took."""

    entry: HeldDrawing | HeldEdit
    references: tuple[Image.Image, ...]
    picture: Image.Image
    scores: Scores | EditScores
    seconds: float


def evaluate_pipeline(
    pipeline: Any,
    drawings: Iterable[HeldDrawing],
    edits: Iterable[HeldEdit],
    settings: Settings | None = None,
) -> list[Outcome]:
    """Draw and score with a `Flux2Pipeline`, or whatever is called like one."""
    settings = settings or Settings()
    outcomes = []
    for drawing in drawings:
        picture, seconds = _call(pipeline, drawing, (), settings)
        scores = score_drawing(drawing.meaning, picture)
        outcomes.append(Outcome(drawing, (), picture, scores, seconds))
    for edit in edits:
        references = tuple(
            draw(scene, settings.width, settings.height) for scene in edit.example.references
        )
        picture, seconds = _call(pipeline, edit, references, settings)
        edit_scores = score_edit(edit.example, picture, list(references))
        outcomes.append(Outcome(edit, references, picture, edit_scores, seconds))
    return outcomes


def summarise_outcomes(outcomes: Sequence[Outcome]) -> dict[str, Rate]:
    """Give the rates of the drawings' dimensions and the edits' actions, those asked for only."""
    drawn = [outcome.scores for outcome in outcomes if isinstance(outcome.scores, Scores)]
    edited = [
        (outcome.entry.example.meaning.action, outcome.scores)
        for outcome in outcomes
        if isinstance(outcome.entry, HeldEdit) and isinstance(outcome.scores, EditScores)
    ]
    rates = {**summarise(drawn), **summarise_edits(edited)}
    return {name: rate for name, rate in rates.items() if rate.asked}


def list_untouched_errors(outcomes: Sequence[Outcome]) -> list[float]:
    """List how far each edit changed what it should have left alone, from 0 to 1."""
    scores = [outcome.scores for outcome in outcomes]
    return [score.untouched_error for score in scores if isinstance(score, EditScores)]


def measure_seconds(outcomes: Sequence[Outcome]) -> float:
    """Give the median time of a picture."""
    return statistics.median(outcome.seconds for outcome in outcomes)


def _call(
    pipeline: Any,
    entry: HeldDrawing | HeldEdit,
    references: tuple[Image.Image, ...],
    settings: Settings,
) -> tuple[Image.Image, float]:
    started = time.monotonic()
    output = pipeline(
        prompt=entry.caption,
        image=list(references) or None,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        sigmas=list(settings.sigmas) if settings.sigmas else None,
        guidance_scale=settings.guidance,
        generator=torch.Generator("cpu").manual_seed(entry.seed),
    )
    return output.images[0].convert("RGB"), time.monotonic() - started
