"""Works around one packaging gap: PyPI's torchvision beside a CPU-only torch.

That wheel's C++ extension is linked to CUDA and cannot load without it. torchvision then means
to go on without its operators, but fails at import where it attaches shapes to two of them.
`PixtralProcessor` will not construct without torchvision; its image path needs no C++ operator.
"""

import importlib.util
from pathlib import Path

import torch

_MISSING_OPERATORS = {
    # Non-maximum suppression of detected boxes, plain and quantised. Never called here.
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def declare_torchvision_operators() -> None:
    """Make `import torchvision` work, if it would not by itself; call it before diffusers loads.

    Declares schemas without kernels, so calling such an operator still fails. Does nothing where
    torchvision is absent or its own extension loads, and nothing the second time.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _loads_extension(Path(spec.origin).parent):
        return
    for name, schema in _MISSING_OPERATORS.items():
        namespace, operator = name.split("::")
        if not hasattr(getattr(torch.ops, namespace), operator):
            # Without `lib` torch itself keeps the declaration alive for the whole process.
            torch.library.define(name, schema)


def _loads_extension(package: Path) -> bool:
    """Load torchvision's operators, as its own import does; loading them twice is harmless."""
    for extension in (*package.glob("_C.*so"), *package.glob("_C.*pyd")):
        try:
            torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
        except OSError:
            return False
        return True
    return False
