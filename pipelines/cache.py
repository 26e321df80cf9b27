"""Remembers tensors that were expensive to make, up to a number of bytes."""

from collections import OrderedDict
from collections.abc import Callable

import torch


class TensorCache:
    """Tensors by key, the least recently used forgotten first. For one thread.

    They are kept in main memory, pinned where they came from a CUDA device so that they are soon
    back, and handed out on the device. What comes out is what went in, bit for bit. A key must
    hold all that the tensor depends on.
    """

    def __init__(self, limit_bytes: int, device: torch.device) -> None:
        self._limit_bytes = limit_bytes
        self._device = device
        self._kept: OrderedDict[object, torch.Tensor] = OrderedDict()
        self.bytes = 0
        """How much is kept now."""

    def get(self, key: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what is kept under `key`; if nothing is, make it and keep it.

        The caller must not write to it. Raises what `make` raises, and keeps nothing then.
        """
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept.to(self._device, non_blocking=True)
        made = make()
        if made.nbytes <= self._limit_bytes:
            self._keep(key, made)
        return made

    def _keep(self, key: object, made: torch.Tensor) -> None:
        if made.is_cuda:
            copy = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
            copy.copy_(made)  # waits for the device: it has to be whole before it is handed out
        else:
            copy = made
        self._kept[key] = copy
        self.bytes += copy.nbytes
        while self.bytes > self._limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= oldest.nbytes
