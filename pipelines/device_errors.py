"""torch's device errors, translated into ours."""

from collections.abc import Callable
from typing import TypeVar

import torch

from pipelines.errors import DeviceLostError, OutOfMemoryError

T = TypeVar("T")


def on_device(work: Callable[[], T]) -> T:
    """Do the work; raises `OutOfMemoryError` and `DeviceLostError` for what torch calls otherwise.

    Raised outside the `except` blocks, and so without a context: that would keep the old error's
    frames alive, and with them the tensors that must be freed.
    """
    try:
        return work()
    except torch.OutOfMemoryError as error:
        translated: Exception = OutOfMemoryError(str(error))
    except torch.AcceleratorError as error:
        translated = DeviceLostError(str(error))
    raise translated
