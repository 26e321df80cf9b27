"""The attention kernel: chosen for the card, installed, working, or else torch's own."""

from typing import Any

import pytest
import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName

from pipelines.attention import KERNELS, choose_attention, use_attention

AMPERE, ADA, HOPPER, BLACKWELL = (8, 0), (8, 9), (9, 0), (10, 0)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "installed", "expected"),
    [
        (None, {"flash_attn_interface"}, "native"),
        (AMPERE, {"flash_attn_interface"}, "native"),
        (ADA, set(), "native"),
        (HOPPER, {"flash_attn_interface", "sageattention"}, "flash3"),
        (HOPPER, {"sageattention"}, "cudnn"),
        (BLACKWELL, {"flash_attn_interface"}, "cudnn"),
    ],
)
def test_the_best_exact_kernel_is_chosen_for_the_card(
    capability: tuple[int, int] | None, installed: set[str], expected: str
) -> None:
    """SageAttention, which quantises, never by itself."""
    assert choose_attention("auto", capability, installed.__contains__) == expected


@pytest.mark.parametrize("asked", KERNELS)
def test_what_is_asked_for_is_taken_if_it_is_there(asked: str) -> None:
    """On a card; what is not installed, and all that needs a card on a CPU, is torch's own."""
    assert choose_attention(asked, HOPPER, lambda _: True) == asked
    assert choose_attention(asked, None, lambda _: True) == "native"
    missing = choose_attention(asked, HOPPER, lambda _: False)
    assert missing == (asked if asked in ("native", "cudnn") else "native")


@pytest.mark.parametrize("kernel", ["flash3", "cudnn"])
def test_a_kernel_that_does_not_work_is_not_used(oracle: Any, kernel: str) -> None:
    """No image fails for it: it is tried once, and torch's own takes its place."""
    assert use_attention(oracle.transformer, kernel, CPU) == "native"
    backends = {
        module.processor._attention_backend
        for module in oracle.transformer.modules()
        if isinstance(module, AttentionModuleMixin)
    }
    assert backends == {AttentionBackendName.NATIVE}
