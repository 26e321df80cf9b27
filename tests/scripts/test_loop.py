"""The training loop: a stopped run goes on as if it had never stopped, and says how it goes."""

import json
from pathlib import Path

import pytest
import torch

from scripts.train_demo_model import loop as loop_module
from scripts.train_demo_model.loop import Loop

STEPS = 20


def _model(seed: int = 0) -> torch.nn.Module:
    """Make a model with all that a state consists of: matrices, vectors, and a norm's buffers."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.GELU(), torch.nn.Linear(8, 1)
    )


def _hidden(model: torch.nn.Module) -> list[torch.Tensor]:
    return [model.get_parameter("0.weight")]


def _train(folder: Path, model: torch.nn.Module, stop_before: int = STEPS, seed: int = 0) -> Loop:
    """Teach the model a sum, on examples that are random in every step."""
    loop = Loop(folder, model, steps=STEPS, peak_rate=0.01, seed=seed, hidden=_hidden(model))
    for step in loop:
        if step == stop_before:
            break
        inputs = torch.randn(16, 4)
        loss = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        loop.update(loss, doubled=2 * float(loss.detach()))
    return loop


def _weights(loop: Loop, model: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.state_dict().values(), *loop.averaged().state_dict().values()]


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight, buffer and average is the same to the last bit, whatever the new start."""
    whole = _model()
    at_once = _weights(_train(tmp_path / "whole", whole), whole)
    monkeypatch.setattr(loop_module, "_SAVE_EVERY_SECONDS", -1.0)  # else only after minutes
    _train(tmp_path / "halves", _model(), stop_before=10)
    resumed = _model(seed=1)
    in_two = _weights(_train(tmp_path / "halves", resumed), resumed)
    assert all(torch.equal(one, other) for one, other in zip(at_once, in_two, strict=True))


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    """A second call has no steps left, and gives the same weights."""
    first, second = _model(), _model(seed=1)
    trained = _weights(_train(tmp_path, first), first)
    again = Loop(tmp_path, second, steps=STEPS, peak_rate=0.01, hidden=_hidden(second))
    assert list(again) == []
    assert all(map(torch.equal, trained, _weights(again, second)))


def test_another_seed_sees_other_examples(tmp_path: Path) -> None:
    """From the same start, the weights end elsewhere."""
    one, other = _model(), _model()
    _train(tmp_path / "one", one, seed=0)
    _train(tmp_path / "other", other, seed=1)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_the_averages_are_not_the_last_weights(tmp_path: Path) -> None:
    """They lag behind, and the model that is trained is left as it is."""
    model = _model()
    loop = _train(tmp_path, model)
    last = [parameter.clone() for parameter in model.parameters()]
    averaged = loop.averaged()
    assert not averaged.training
    for mean, before, now in zip(averaged.parameters(), last, model.parameters(), strict=True):
        assert not torch.equal(mean, before)
        assert torch.equal(before, now)


def test_the_log_tells_step_loss_and_what_else_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line holds the means since the line before."""
    monkeypatch.setattr(loop_module, "_LOG_EVERY_STEPS", 8)
    _train(tmp_path, _model())
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == [8, 16, 20]
    for entry in entries:
        assert entry["doubled"] == pytest.approx(2 * entry["loss"], abs=1e-5)
        assert entry.keys() >= {"norm", "rate", "seconds"}
    assert entries[-1]["loss"] < entries[0]["loss"]


def test_a_hidden_matrix_is_turned_in_all_directions_alike(tmp_path: Path) -> None:
    """One step changes it by a matrix of near singular values, which no gradient has by itself."""
    model = _model()
    (matrix,) = _hidden(model)
    before = matrix.detach().clone()
    _train(tmp_path, model, stop_before=1)
    spectrum = torch.linalg.svdvals(matrix.detach() - before)
    assert spectrum[0] < 2 * spectrum[-1]
