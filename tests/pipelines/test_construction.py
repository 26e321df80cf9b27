"""Pipelines laid out in other ways than this machine needs: the pictures stay the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch

from pipelines import construction
from pipelines.demonstration import DEMO_CHECKPOINT
from pipelines.errors import DoesNotFitError, LanguageError, OutOfMemoryError
from pipelines.flux2 import Flux2
from pipelines.memory import choose_plan
from pipelines.plan import Plan
from pipelines.streaming import HostEmbedding, Streamed
from pipelines.types import Acceleration, LoadOptions, Precision, ignore_load_progress
from tests.pipelines.test_flux2 import make_latents, make_request
from tests.pipelines.test_memory import REAL, make_card

Load = Callable[..., Flux2]


@pytest.fixture
def load(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that loads the tiny checkpoint by this machine's plan with changes."""

    def load(**changes: Any) -> Flux2:
        def choose(*args: Any, **kwargs: Any) -> Plan:
            return replace(choose_plan(*args, **kwargs), **changes)

        monkeypatch.setattr(construction, "choose_plan", choose)
        options = LoadOptions(model=demo_model, device="cpu", expansion_tokens=4)
        return construction.construct(options, ignore_load_progress)[0]

    return load


def test_streamed_weights_give_the_same_picture(
    load: Load, flux2: Flux2, references: tuple[Path, ...]
) -> None:
    """Text encoder and blocks in main memory, for several requests one after the other."""
    streamed = load(text_encoder="streamed", blocks="streamed", flash="attached")
    language = streamed._pipe.text_encoder.model.language_model
    assert isinstance(language.embed_tokens, HostEmbedding)
    assert all(isinstance(layer, Streamed) for layer in language.layers)
    for request in (make_request(), make_request(references=references[:1]), make_request(seed=3)):
        assert torch.equal(make_latents(streamed, request), make_latents(flux2, request))


def test_diffusers_is_done_before_weights_are_read(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it makes a model, what any other thread reads into a module would be lost."""
    order: list[str] = []

    def note(owner: Any, name: str) -> None:
        work = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            order.append(f"{name} begins")
            found = work(*args, **kwargs)
            order.append(f"{name} ends")
            return found

        monkeypatch.setattr(owner, name, noted)

    note(accelerate, "init_empty_weights")
    note(diffusers.AutoencoderKLFlux2, "from_pretrained")
    note(diffusers.Flux2Pipeline, "from_pretrained")
    note(construction, "read_tensors")
    load()
    assert "init_empty_weights begins" in order
    assert order[-2:] == ["read_tensors begins", "read_tensors ends"]


def test_slots_are_given_back_after_every_request(load: Load) -> None:
    """So that the VAE, and whoever else uses the device, has the room."""
    streamed = load(text_encoder="streamed", blocks="streamed")
    list(streamed.generate(make_request(), lambda _step: None, lambda: False))
    assert streamed._slots
    assert streamed._slots._slots == ()


def test_fast_blocks_alone_serve_every_level(load: Load) -> None:
    """Where exact ones have no room; what was really done is told."""
    fast = load(exact=False, fast=Precision.FP8)
    for level in Acceleration:
        assert fast.describe(make_request(acceleration=level).settings)["precision"] == "fp8"
    assert make_latents(fast, make_request()).isfinite().all()


def test_what_would_not_fit_is_refused_before_the_first_step(
    load: Load, references: tuple[Path, ...]
) -> None:
    """By the plan's arithmetic: the picture alone fits, with a reference it does not."""
    roomy = load()
    plan = roomy._plan
    assert plan
    small, tight = make_request(), make_request(references=references[:1])
    tokens = small.settings.width * small.settings.height // 256
    narrow = load(free_bytes=plan.peak_bytes(tokens))
    steps: list[object] = []
    assert list(narrow.generate(small, steps.append, lambda: False))
    del steps[:]
    with pytest.raises(OutOfMemoryError, match=r"tokens with \d+ of references need .* GB"):
        list(narrow.generate(tight, steps.append, lambda: False))
    assert steps == []


def test_a_model_that_does_not_fit_is_not_loaded(demo_model: Path) -> None:
    """A profile for cards on a machine without one says so."""
    options = LoadOptions(model=demo_model, device="cpu", profile="80gb")
    with pytest.raises(DoesNotFitError, match="profile 80gb .* made for another kind of device"):
        construction.construct(options, ignore_load_progress)


def test_the_text_encoder_is_whole_where_that_costs_nothing_else(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default; where memory is scarce it reads prompts, unless the operator wants more."""
    monkeypatch.setattr(construction, "read_model_size", lambda *_paths: REAL)

    def plan(card_gb: int, **changes: Any) -> Plan:
        monkeypatch.setattr(construction, "probe_card", lambda _device: make_card(card_gb))
        options = LoadOptions(**{"model": demo_model, **changes})
        return construction.plan_memory(options, Precision.BFLOAT16, has_flash=True)

    roomy, scarce = 180, 141
    assert plan(roomy).whole_text_encoder
    assert not plan(scarce).whole_text_encoder
    assert plan(scarce).exact
    assert plan(scarce, text_encoder="whole").whole_text_encoder
    assert plan(scarce, prompt_criteria=("Is it rude?",)).whole_text_encoder
    assert not plan(roomy, text_encoder="prompts").whole_text_encoder
    assert not plan(roomy, model=DEMO_CHECKPOINT).whole_text_encoder


def test_criteria_need_somebody_to_judge_by_them() -> None:
    """A checkpoint whose encoder cannot answer is not served without its checks."""
    options = LoadOptions(model=DEMO_CHECKPOINT, device="cpu", prompt_criteria=("Is it rude?",))
    with pytest.raises(LanguageError, match="no language model: .* cannot write"):
        construction.construct(options, ignore_load_progress)


def test_a_streamed_text_encoder_writes_the_same(load: Load) -> None:
    """Its layers come and go for every token; it takes no second look beside other work."""
    written, resident = (
        load(text_encoder=placement)._language for placement in ("streamed", "resident")
    )
    request = make_request(expand_prompt=True)
    texts = [language.choose_prompt(request, lambda: False) for language in (written, resident)]
    assert texts[0] == texts[1] != request.prompt
    assert written.second_look is None
    assert resident.second_look is not None


def test_progress_is_told_by_stage(demo_model: Path) -> None:
    """Each stage up to its end."""
    told: list[tuple[str, float]] = []
    options = LoadOptions(model=demo_model, device="cpu")
    construction.construct(options, lambda stage, fraction: told.append((stage, fraction)))
    for stage in ("text_encoder", "transformer", "warm_up"):
        fractions = [fraction for name, fraction in told if name == stage]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
