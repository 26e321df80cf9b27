"""Modules whose weights stay in main memory and pass through two slots on the device.

While one module computes, the next one's weights are copied into the other slot, so that the
transfer hides behind the arithmetic where that takes longer. What passes is never changed, so
nothing is copied back. One queue of modules runs at a time; all of them share the slots.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.variants import Module, derive

ALIGNMENT_BYTES = 256
"""Where tensors begin in a slot: what kernels may expect of memory from torch's own allocator."""


class Slots:
    """Room on the device for two modules' weights, taken when it is first needed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copying: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots: tuple[_Slot, ...] = ()
        self._slot_bytes = 0

    def make_room_for(self, tensors: Sequence[Tensor]) -> None:
        """Let slots be large enough for all of these at once, from the next use on."""
        self._slot_bytes = max(self._slot_bytes, _place(tensors)[1])
        self.release()

    def release(self) -> None:
        """Give the room back to torch's allocator."""
        if self._copying and self._slots:
            # What the allocator gives out next must not be written to by a copy under way.
            torch.cuda.current_stream(self._device).wait_stream(self._copying)
        self._slots = ()

    @contextlib.contextmanager
    def hold(self, key: object, hosts: Sequence[Tensor]) -> Iterator["_Slot"]:
        """Have these tensors on the device for the block; `key` tells them from others."""
        slot = self.fetch(key, hosts)
        if slot.copied:
            torch.cuda.current_stream(self._device).wait_event(slot.copied)
        try:
            yield slot
        finally:
            if self._copying:
                slot.used = torch.cuda.current_stream(self._device).record_event()

    def fetch(self, key: object, hosts: Sequence[Tensor], beside: "_Slot | None" = None) -> "_Slot":
        """Begin to copy into a slot, another than `beside`, unless that has been done."""
        self._open()
        slot = next((slot for slot in self._slots if slot.key == key), None)
        if slot is None:
            slot = next(slot for slot in self._slots if slot is not beside)
            slot.key = key
            self._copy(hosts, slot)
        return slot

    def _open(self) -> None:
        if self._slots:
            return
        room = (self._slot_bytes,)
        self._slots = tuple(
            _Slot(torch.empty(room, dtype=torch.uint8, device=self._device)) for _ in range(2)
        )
        if self._copying:
            # Work that was queued before may still read what this memory held.
            self._copying.wait_stream(torch.cuda.current_stream(self._device))

    def _copy(self, hosts: Sequence[Tensor], slot: "_Slot") -> None:
        views = slot.views_like(hosts)
        if self._copying is None:
            for view, host in zip(views, hosts, strict=True):
                view.copy_(host)
            return
        with torch.cuda.stream(self._copying):
            if slot.used:
                self._copying.wait_event(slot.used)
            for view, host in zip(views, hosts, strict=True):
                view.copy_(host, non_blocking=True)
            slot.copied = self._copying.record_event()


@dataclass(slots=True, eq=False)
class _Slot:
    """Bytes on the device, whose weights they are, and when they were last written and read."""

    buffer: Tensor
    key: object = None
    copied: torch.cuda.Event | None = None
    used: torch.cuda.Event | None = None

    def views_like(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the places of these tensors, in their types and shapes."""
        offsets, _ = _place(tensors)
        return [
            self.buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for offset, tensor in zip(offsets, tensors, strict=True)
        ]


class Queue:
    """Modules that run one after the other, again and again."""

    def __init__(self, modules: Sequence[nn.Module], slots: Slots) -> None:
        self._slots = slots
        self._passing = [_tensors_on_cpu(module) for module in modules]
        self._hosts = [[tensor.data for tensor in tensors] for tensors in self._passing]
        for hosts in self._hosts:
            slots.make_room_for(hosts)

    @contextlib.contextmanager
    def bring(self, index: int) -> Iterator[None]:
        """Have a module's weights on the device for the block, and the next one's on their way."""
        tensors, hosts = self._passing[index], self._hosts[index]
        after = (index + 1) % len(self._hosts)
        with self._slots.hold((self, index), hosts) as slot:
            self._slots.fetch((self, after), self._hosts[after], beside=slot)
            for tensor, view in zip(tensors, slot.views_like(hosts), strict=True):
                tensor.data = view
            try:
                yield
            finally:
                for tensor, host in zip(tensors, hosts, strict=True):
                    tensor.data = host


class Streamed(nn.Module):
    """Runs a module with its weights brought to the device."""

    def __init__(self, queue: Queue, index: int, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._queue, self._index = queue, index

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the module does."""
        with self._queue.bring(self._index):
            return self.module(*args, **kwargs)


class HostEmbedding(nn.Module):
    """An embedding that is looked up in main memory: of a large table a prompt reads few rows."""

    def __init__(self, device: torch.device, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        self._device = device

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids (...) as (..., width) on the device."""
        rows: Tensor = self.embedding(ids.cpu())
        return rows.to(self._device)


def to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to main memory, pinned where there is a CUDA device that copies from it."""
    is_pinned = torch.cuda.is_available()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=is_pinned)
    return host.copy_(tensor)


def stream(root: Module, names: Sequence[str], slots: Slots) -> Module:
    """Make a tree like `root` whose modules `names`, which run in this order, pass through slots.

    Of each module the tensors in main memory pass; those on the device stay there.
    """
    queue = Queue([root.get_submodule(name) for name in names], slots)
    return derive(root, {name: partial(Streamed, queue, i) for i, name in enumerate(names)})


def _tensors_on_cpu(module: nn.Module) -> list[Tensor]:
    tensors = [*module.parameters(), *module.buffers()]
    return [tensor for tensor in tensors if tensor.device.type == "cpu"]


def _place(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Return where each tensor begins in a slot, and how long the slot must be."""
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += -(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return offsets, end
