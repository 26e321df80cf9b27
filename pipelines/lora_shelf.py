"""Callers' LoRAs that lie ready on the device, known by their content."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from pipelines.errors import LoraError, LoraRefusedError
from pipelines.lora_file import Lora, Widths, read_fitting
from pipelines.types import LoraUse

log = structlog.get_logger(__name__)

_Identity = tuple[int, int, int, int]

_NOWHERE = torch.device("meta")
"""Where tensors take no memory, but can be asked how much they would take."""


@dataclass(frozen=True, slots=True)
class _Place:
    device: torch.device
    dtype: torch.dtype


class LoraShelf:
    """Reads LoRAs for layers of these widths, and keeps those used last, in `most_bytes`.

    Those of the request under way are there whatever they take, until `trim` is called.
    """

    def __init__(
        self, widths: Widths, device: torch.device, dtype: torch.dtype, most_bytes: int
    ) -> None:
        self._widths = widths
        self._place = _Place(device, dtype)
        self._most_bytes = most_bytes
        self._loras: dict[
            str, Lora
        ] = {}  # by the hash of their content, those used last at the end
        self._hashes: dict[_Identity, str] = {}

    @property
    def held_bytes(self) -> int:
        """What all of them take on the device."""
        return sum(lora.nbytes for lora in self._loras.values())

    def fetch(self, uses: Sequence[LoraUse]) -> list[Lora]:
        """Return the LoRAs of a request, on the device, in its order.

        Raises `LoraRefusedError` for the first that does not fit.
        """
        loras: list[Lora] = []
        try:
            for use in uses:
                loras.append(self._fetch(use.path, loras))
        except LoraError as error:
            log.info("LoRA refused", path=str(uses[len(loras)].path), reason=str(error))
            raise LoraRefusedError(len(loras), str(error)) from error
        finally:
            if len(loras) < len(uses):
                self.trim()
        return loras

    def trim(self) -> None:
        """Let go of all that is too much to be kept between requests."""
        self._forget((), self._most_bytes)

    def keep_only(self, loras: Sequence[Lora] = ()) -> None:
        """Let go of all others."""
        self._forget(loras, 0)

    def _fetch(self, path: Path, needed: Sequence[Lora]) -> Lora:
        """Return what the file holds, for a request that needs these others, too."""
        identity = _identify(path)
        lora = self._loras.pop(self._hashes.get(identity, ""), None)
        if lora is None:
            read = read_fitting(path, self._widths)
            # The same content may lie here already, by another file.
            lora = self._loras.pop(read.sha256, None) or self._place_on_device(read, needed)
            log.info("LoRA read", sha256=lora.sha256, layers=len(lora.additions))
        self._hashes[identity] = lora.sha256
        self._loras[lora.sha256] = lora
        return lora

    def _place_on_device(self, read: Lora, needed: Sequence[Lora]) -> Lora:
        """Bring it to the device, where what is not needed makes room for it first."""
        size_bytes = read.to(_NOWHERE, self._place.dtype).nbytes
        self._forget(needed, self._most_bytes - size_bytes)
        return read.to(self._place.device, self._place.dtype)

    def _forget(self, needed: Sequence[Lora], most_bytes: int) -> None:
        """Let go of those used longest ago, until the rest is small enough."""
        kept = {lora.sha256 for lora in needed}
        for sha256 in list(self._loras):
            if self.held_bytes <= most_bytes:
                break
            if sha256 not in kept:
                del self._loras[sha256]
        self._hashes = {
            identity: sha256 for identity, sha256 in self._hashes.items() if sha256 in self._loras
        }


def _identify(path: Path) -> _Identity:
    """Tell a file from others, and from itself before it was changed, without reading it."""
    try:
        seen = path.stat()
    except OSError as error:
        raise LoraError(f"cannot be read: {error.strerror}") from error
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns
