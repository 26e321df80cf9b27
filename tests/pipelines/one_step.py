"""One call of a transformer, as a step makes it: what LoRAs are compared by."""

from typing import Any

import torch

from pipelines.flux2 import Flux2


def make_inputs(flux2: Flux2) -> dict[str, torch.Tensor]:
    """Return what the transformer is called with in one step of a small picture."""
    condition = flux2.encode("a lighthouse")
    latents, ids = flux2.prepare(1, 128, 96)
    return {
        "hidden_states": latents,
        "encoder_hidden_states": condition.prompt_embeds,
        "timestep": torch.tensor([0.7]),
        "guidance": torch.tensor([2.5]),
        "img_ids": ids,
        "txt_ids": condition.text_ids,
    }


@torch.no_grad()
def call(transformer: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run one step."""
    velocity: torch.Tensor = transformer(**inputs, return_dict=False)[0]
    return velocity
