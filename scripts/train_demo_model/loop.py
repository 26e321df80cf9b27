"""The training loop that all stages share: schedule, averaged weights, log, and resuming."""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_SAVE_EVERY_SECONDS = 120.0
_LOG_EVERY_STEPS = 25
_MUON_RATE = 1.5  # of AdamW's, its steps being scaled to the same length


@dataclass(frozen=True, slots=True)
class Rate:
    """One cycle of the learning rate: up to `peak` in a straight line, down as a cosine.

    `final` is what is left of the peak at the last step.
    """

    peak: float
    steps: int
    warm_up: float = 0.08
    final: float = 0.02

    def at(self, step: int) -> float:
        """Give the rate of a step, counted from 0."""
        share = min(1.0, (step + 1) / self.steps)
        if share < self.warm_up:
            return self.peak * share / self.warm_up
        fall = (share - self.warm_up) / (1 - self.warm_up)
        return self.peak * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * fall)))


class Loop:
    """Runs one stage for a number of steps, and takes it up again where it was stopped.

    The stage's folder holds `state.pt` (weights, averages, optimiser, step) and `log.jsonl`. The
    random state is a pure function of seed and step (`seed_of`), so that a resumed run sees the
    same examples as one that never stopped. Only what a stage keeps over many steps, as `Pool`
    does, begins anew. `hidden` are the parameters that Muon moves instead of AdamW.
    """

    def __init__(
        self,
        folder: Path,
        model: torch.nn.Module,
        *,
        steps: int,
        peak_rate: float,
        average: float = 0.999,
        seed: int = 0,
        hidden: Sequence[torch.Tensor] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._model, self._steps, self._seed = folder, model, steps, seed
        self._parameters: list[torch.Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._optimisers = _make_optimisers(self._parameters, hidden)
        self._rate = Rate(peak_rate, steps)
        self._average = average
        self._averages = [p.detach().clone() for p in self._parameters]
        self._step = 0
        self._recent: dict[str, list[float]] = {}
        self._resume()

    def __iter__(self) -> Iterator[int]:
        """Count the steps that remain; call `update` once in each."""
        started, saved, first = time.monotonic(), time.monotonic(), self._step
        while self._step < self._steps:
            torch.manual_seed(self.seed_of(self._step))
            yield self._step
            self._step += 1
            now = time.monotonic()
            if self._step % _LOG_EVERY_STEPS == 0 or self._step == self._steps:
                self._log((now - started) / (self._step - first))
            if now - saved > _SAVE_EVERY_SECONDS:
                self._save()
                saved = now
        self._save()

    def seed_of(self, step: int) -> int:
        """Give the seed of all that is random in a step."""
        return self._seed * 1_000_003 + step

    def update(self, loss: torch.Tensor, **also: float) -> None:
        """Take one optimiser step down `loss`; `also` goes to the log."""
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["rate_factor"] * self._rate.at(self._step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        decay = min(self._average, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)
        for name, value in {"loss": float(loss.detach()), "norm": float(norm), **also}.items():
            self._recent.setdefault(name, []).append(value)

    def averaged(self) -> Any:
        """Copy the model with its averaged weights, which draw better than the last ones."""
        model = copy.deepcopy(self._model).eval()
        places = {id(p): name for name, p in self._model.named_parameters()}
        copies = dict(model.named_parameters())
        with torch.no_grad():
            for parameter, average in zip(self._parameters, self._averages, strict=True):
                copies[places[id(parameter)]].copy_(average)
        return model

    def _log(self, seconds: float) -> None:
        entry = {name: sum(values) / len(values) for name, values in self._recent.items()}
        entry |= {"step": self._step, "rate": self._rate.at(self._step), "seconds": seconds}
        self._recent.clear()
        line = json.dumps({key: round(value, 6) for key, value in entry.items()})
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(self._folder.name, line, flush=True)

    def _save(self) -> None:
        state = {
            "step": self._step,
            "model": self._model.state_dict(),
            "averages": self._averages,
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
        }
        unfinished = self._folder / "state.pt.new"
        torch.save(state, unfinished)
        unfinished.replace(self._folder / "state.pt")

    def _resume(self) -> None:
        path = self._folder / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self._averages[0].device, weights_only=True)
        self._step = state["step"]
        self._model.load_state_dict(state["model"])
        self._averages = [average.detach() for average in state["averages"]]
        for optimiser, kept in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)


def _make_optimisers(
    parameters: Sequence[torch.Tensor], hidden: Sequence[torch.Tensor]
) -> list[torch.optim.Optimizer]:
    """Give `hidden`, matrices between hidden states, to Muon, and all others to AdamW.

    Muon (https://kellerjordan.github.io/posts/muon/) takes steps that turn all directions of a
    matrix alike. On the same 125 batches it came to losses 4 to 9 % lower, each step of 1.3 seconds
    0.17 seconds dearer.
    """
    given = {id(matrix) for matrix in hidden}
    others = [p for p in parameters if id(p) not in given]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.01, "rate_factor": 1.0},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "rate_factor": 1.0},
    ]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in groups if group["params"]], betas=(0.9, 0.97), fused=True
        )
    ]
    if hidden:
        group = {"params": list(hidden), "rate_factor": _MUON_RATE}
        optimisers.append(
            torch.optim.Muon([group], weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        )
    return optimisers


def autocast(device: torch.device) -> Callable[[], Any]:
    """Compute matrix products in bfloat16, on the CPU too: twice as fast where it has them."""
    return lambda: torch.autocast(device.type, torch.bfloat16)
