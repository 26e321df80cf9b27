"""Callers' LoRAs on the device: read once for each content, and no more of them than may be."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import LoraRefusedError
from pipelines.lora_file import Lora
from pipelines.lora_shelf import LoraShelf
from pipelines.types import LoraUse

CPU = torch.device("cpu")
LAYER = "transformer_blocks.0.attn.to_q"
WIDTHS = {LAYER: (64, 64)}
LORA_BYTES = 2 * 4 * 64 * 2  # a pair of rank 4 in bfloat16


def write(path: Path, value: float = 1.0) -> LoraUse:
    """Write a LoRA of one pair, all of its numbers this one."""
    pair = {"A": torch.full((4, 64), value), "B": torch.full((64, 4), value)}
    save_file({f"{LAYER}.lora_{side}.weight": half for side, half in pair.items()}, path)
    return LoraUse(path)


def make_shelf(most_bytes: int) -> LoraShelf:
    """Return an empty one."""
    return LoraShelf(WIDTHS, CPU, torch.bfloat16, most_bytes)


def test_equal_content_is_one_lora_wherever_it_lies(tmp_path: Path) -> None:
    """On the device once, in the model's type, and not read again for another request."""
    shelf = make_shelf(10 * LORA_BYTES)
    uses = [write(tmp_path / name) for name in ("a", "b")]
    first, second = shelf.fetch(uses)
    assert first is second
    assert shelf.held_bytes == first.nbytes == LORA_BYTES
    assert shelf.fetch(uses[:1])[0] is first


def test_a_file_that_was_replaced_is_another_lora(tmp_path: Path) -> None:
    """Under the same name, of the same size."""
    shelf, path = make_shelf(10 * LORA_BYTES), tmp_path / "a"
    (before,) = shelf.fetch([write(path, 1.0)])
    write(tmp_path / "new", 2.0)
    (tmp_path / "new").replace(path)
    (after,) = shelf.fetch([LoraUse(path)])
    assert after.sha256 != before.sha256
    assert float(after.pairs[LAYER].down[0, 0]) == 2.0


def test_those_used_longest_ago_go_first(tmp_path: Path) -> None:
    """And those of the request under way stay, whatever they take."""
    uses = [write(tmp_path / str(number), float(number)) for number in range(3)]
    shelf = make_shelf(2 * LORA_BYTES)
    for use in (*uses[:2], uses[0], uses[2]):
        shelf.fetch([use])
    assert shelf.held_bytes == 2 * LORA_BYTES
    before = shelf.fetch([uses[0]])[0]  # used after 1, which had to go
    assert shelf.fetch([uses[0]])[0] is before
    shelf.fetch(uses)
    assert shelf.held_bytes == 3 * LORA_BYTES
    shelf.trim()
    assert shelf.held_bytes == 2 * LORA_BYTES
    shelf.keep_only(shelf.fetch(uses[1:2]))
    assert shelf.held_bytes == LORA_BYTES
    shelf.keep_only()
    assert shelf.held_bytes == 0


@pytest.mark.parametrize("bad", ["missing", "empty"])
def test_the_one_that_does_not_fit_is_told_by_its_number(tmp_path: Path, bad: str) -> None:
    """Without its path, which is nothing to callers."""
    good, path = write(tmp_path / "good"), tmp_path / "bad"
    if bad == "empty":
        path.touch()
    with pytest.raises(LoraRefusedError) as caught:
        make_shelf(0).fetch([good, LoraUse(path)])
    assert caught.value.index == 1
    assert str(tmp_path) not in str(caught.value)


def test_a_refused_request_leaves_no_more_than_may_be_kept(tmp_path: Path) -> None:
    """However many are asked for with one behind them that is no LoRA."""
    shelf, bad = make_shelf(LORA_BYTES), LoraUse(tmp_path / "bad")
    for number in range(3):
        fresh = [write(tmp_path / f"{number}.{index}", number + index / 2) for index in range(2)]
        with pytest.raises(LoraRefusedError) as caught:
            shelf.fetch([*fresh, bad])
        assert caught.value.index == 2
        assert shelf.held_bytes == LORA_BYTES


def test_room_is_made_before_another_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one comes to the device no more lies there than may, but for the request's others."""
    shelf, held = make_shelf(2 * LORA_BYTES), []
    to = Lora.to

    def note_and_put(lora: Lora, device: torch.device, dtype: torch.dtype) -> Lora:
        if device == CPU:
            held.append(shelf.held_bytes // LORA_BYTES)
        return to(lora, device, dtype)

    monkeypatch.setattr(Lora, "to", note_and_put)
    uses = [write(tmp_path / str(number), float(number)) for number in range(5)]
    for one in uses[:4]:
        shelf.fetch([one])
    shelf.fetch([*uses[:2], uses[4]])
    assert held == [0, 1, 1, 1, 1, 1, 2]
