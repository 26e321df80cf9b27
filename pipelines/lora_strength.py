"""How strongly a LoRA is meant where it has no alpha of its own: as peft has it. No torch.

diffusers saves peft's configuration of an adapter beside it. Without that a LoRA is added as it is.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import LoraError

_SAVED_BY_DIFFUSERS = "lora_adapter_metadata"
_OF_TRANSFORMER = "transformer."
_NOT_AS_EXPECTED = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)

_PLAIN_NAME = re.compile(r"\^?[\w.]+")
"""peft takes a pattern's names for regular expressions, which from a stranger could take for ever
to match. What diffusers writes there are names."""

_MOST_NAMES = 1000
"""In a pattern. FLUX.2 [dev] has some 200 layers."""

_DEFAULT = 8
"""peft's, of ranks and alphas."""


@dataclass(frozen=True, slots=True)
class Strength:
    """What the parts of a file are multiplied by, going by what was saved of their configuration.

    Its methods raise `LoraError` for what is not understood.
    """

    saved: Mapping[str, Any] | None = None

    def of_pair(self, rank: int) -> float:
        """Return the factor of a pair, as `peft.LoraConfig` has it."""
        if self.saved is None:
            return 1.0
        if self.saved.get("alpha_pattern"):
            raise LoraError("alpha_pattern in its metadata is not understood")
        alpha = _read_number(self.saved.get("lora_alpha", _DEFAULT))
        return alpha / (math.sqrt(rank) if self.saved.get("use_rslora") else rank)

    def of_lokr(self, name: str, keys: Mapping[str, str], rank: int | None) -> float:
        """Return the factor of a LoKr, as `peft.LoKrConfig` has it: also of whole matrices.

        `keys` are its keys in the file, `rank` is that of its factors, if it has any.
        """
        if self.saved is None:
            return 1.0
        are_saved = all(key.startswith(_OF_TRANSFORMER) for key in keys.values())
        if "alpha" in keys or "lora_alpha" in self.saved or not are_saved:
            raise LoraError(f"{name} is a LoKr, but its metadata is not of one saved by diffusers")
        peft_rank = self._number_of(name, "r", "rank_pattern")
        if not (peft_rank == rank if rank else peft_rank > 0):
            raise LoraError(f"the rank of {name} in its metadata is {peft_rank:g}")
        return self._number_of(name, "alpha", "alpha_pattern") / peft_rank

    def _number_of(self, name: str, number: str, pattern: str) -> float:
        """Return the number of this layer: of the first name in the pattern that ends its own."""
        saved = self.saved or {}
        by_layer = saved.get(pattern) or {}
        if (
            not isinstance(by_layer, dict)
            or len(by_layer) > _MOST_NAMES
            or not all(map(_PLAIN_NAME.fullmatch, by_layer))
        ):
            raise LoraError(f"{pattern} in its metadata is not understood")
        parts = name.split(".")
        ends = {".".join(parts[begin:]) for begin in range(len(parts))} | {f"^{name}"}
        key = next(filter(ends.__contains__, by_layer), None)
        return _read_number(saved.get(number, _DEFAULT) if key is None else by_layer[key])


def read_strength(metadata: Mapping[str, str]) -> Strength:
    """Read what diffusers saved, if it did. Raises `LoraError`.

    A pipeline's `save_lora_weights` says which model is meant, a model's `save_lora_adapter` not.
    """
    if _SAVED_BY_DIFFUSERS not in metadata:
        return Strength()
    try:
        saved = {
            key.removeprefix(_OF_TRANSFORMER): value
            for key, value in json.loads(metadata[_SAVED_BY_DIFFUSERS]).items()
        }
    except _NOT_AS_EXPECTED as error:
        raise LoraError(f"its {_SAVED_BY_DIFFUSERS} is not understood") from error
    if saved.get("use_dora"):
        raise LoraError("use_dora in its metadata is not understood")
    return Strength(saved)


def _read_number(value: Any) -> float:
    try:
        return float(value)
    except _NOT_AS_EXPECTED as error:
        raise LoraError(f"its {_SAVED_BY_DIFFUSERS} is not understood") from error
