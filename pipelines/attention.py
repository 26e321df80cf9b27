"""Which attention kernel the transformer uses: the fastest exact one that is installed.

Chosen once, when the model is loaded. Nothing is downloaded: diffusers' names with `hub` in them,
which fetch kernels, are not among ours.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import structlog
import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

log = structlog.get_logger(__name__)

KERNELS = {
    "native": "native",
    "cudnn": "_native_cudnn",
    "flash3": "_flash_3",
    "sage": "sage",
}
"""Our names, which are also the setting's, and diffusers'."""

PACKAGES = {"flash3": "flash_attn_interface", "sage": "sageattention"}
"""What must be installed for some. SageAttention quantises, so it is taken only if asked for."""

HOPPER = (9, 0)


def has_package(name: str) -> bool:
    """Whether a package is installed, without importing it."""
    return importlib.util.find_spec(name) is not None


def choose_attention(
    asked: str,
    capability: tuple[int, int] | None,
    has: Callable[[str], bool] = has_package,
) -> str:
    """Choose a kernel for a CUDA device of this capability, or for the CPU, which has None.

    What cannot run there is not chosen, even if it is asked for: then torch's own is.
    """
    if capability is None:
        return "native"
    package = PACKAGES.get(asked)
    if asked != "auto":
        return asked if package is None or has(package) else "native"
    if capability == HOPPER and has(PACKAGES["flash3"]):
        return "flash3"  # written for this one architecture
    return "cudnn" if capability >= HOPPER else "native"


def use_attention(transformer: Any, kernel: str, device: torch.device) -> str:
    """Let all attention layers use this kernel; returns the one that they use.

    One that fails on a small example is not used: an image later must not fail for its kernel.
    """
    backend = AttentionBackendName(KERNELS[kernel])
    if kernel != "native" and not _works(transformer, backend, device):
        return use_attention(transformer, "native", device)
    for module in transformer.modules():
        if isinstance(module, AttentionModuleMixin):
            # Not by `set_attention_backend`, which also changes a default of the whole process.
            module.processor._attention_backend = backend  # noqa: SLF001
    return kernel


def _works(transformer: Any, backend: AttentionBackendName, device: torch.device) -> bool:
    config = transformer.config
    shape = (1, 128, config.num_attention_heads, config.attention_head_dim)
    example = torch.zeros(shape, dtype=transformer.dtype, device=device)
    try:
        dispatch_attention_fn(example, example, example, backend=backend)
    except Exception as error:  # noqa: BLE001  (kernels fail in any way, some with assertions)
        log.warning(
            "this attention kernel does not work here", kernel=backend.value, reason=repr(error)
        )
        return False
    return True
