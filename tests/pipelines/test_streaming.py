"""Weights that pass through slots: the results are those of weights that stay, bit for bit.

On a CPU the slots are main memory too, so that everything but the copying beside the arithmetic
is seen; that is in `tests/gpu`.
"""

import pytest
import torch
from torch import Tensor, nn

from pipelines.streaming import ALIGNMENT_BYTES, HostEmbedding, Slots, stream, to_host
from pipelines.variants import derive

CPU = torch.device("cpu")


class Chain(nn.Module):
    """Layers of several shapes and types of weights, one after the other."""

    def __init__(self, count: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16 + 4 * i), nn.Linear(16 + 4 * i, 8)) for i in range(count)
        )
        self.layers[1].register_buffer("mean", torch.arange(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Apply all layers."""
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def chain() -> Chain:
    """Return a chain that does not learn."""
    return Chain().requires_grad_(requires_grad=False)


def names_of(chain: Chain) -> list[str]:
    """Return the names of the layers, in the order in which they run."""
    return [f"layers.{number}" for number in range(len(chain.layers))]


def test_streamed_layers_compute_the_same(chain: Chain) -> None:
    """Again and again, also from the middle of the chain, where no copy was begun ahead."""
    slots = Slots(CPU)
    streamed = stream(chain, names_of(chain), slots)
    x = torch.randn(2, 8)
    for _ in range(3):
        assert torch.equal(streamed(x), chain(x))
    assert torch.equal(streamed.layers[2](x), chain.layers[2](x))
    slots.release()
    assert torch.equal(streamed(x), chain(x))


def test_at_most_two_layers_are_on_the_device(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slots are taken, as large as the largest layer, and given back when asked."""
    taken: list[int] = []
    empty = torch.empty

    def watch(size: tuple[int, ...], **kwargs: object) -> Tensor:
        taken.append(size[0])
        return empty(size, **kwargs)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", watch)
    slots = Slots(CPU)
    streamed = stream(chain, names_of(chain), slots)
    assert taken == []
    for _ in range(2):
        streamed(torch.randn(2, 8))
    largest = chain.layers[-1]
    assert taken == 2 * [
        sum(-(-p.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for p in largest.parameters())
    ]


def test_weights_are_where_they_were_after_every_layer(chain: Chain) -> None:
    """In main memory, unchanged; also after a layer that fails."""
    before = {
        name: (tensor.data_ptr(), tensor.clone()) for name, tensor in chain.state_dict().items()
    }
    seen: list[int] = []

    def look(layer: nn.Module, _inputs: object, _output: object) -> None:
        seen.extend(p.data_ptr() for p in layer.parameters())

    for layer in chain.layers:
        layer.register_forward_hook(look)
    streamed = stream(chain, names_of(chain), Slots(CPU))
    streamed(torch.randn(2, 8))
    assert not set(seen) & {pointer for pointer, _ in before.values()}
    with pytest.raises(RuntimeError):
        streamed(torch.randn(2, 9))
    for name, tensor in chain.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_two_queues_take_turns_in_the_same_slots(chain: Chain) -> None:
    """Each finds its own weights, although the other one's lay there in between."""
    slots, other = Slots(CPU), Chain(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.neg_()
    streamed = [stream(root, names_of(root), slots) for root in (chain, other)]
    x = torch.randn(2, 8)
    for _ in range(2):
        for way, root in zip(streamed, (chain, other), strict=True):
            assert torch.equal(way(x), root(x))


def test_trees_with_common_weights_stream_the_same_memory(chain: Chain) -> None:
    """A tree that adds something to a layer is no second copy in main memory."""
    variant = derive(chain, {"layers.0.1": lambda layer: nn.Sequential(layer, nn.ReLU())})
    slots = Slots(CPU)
    x = torch.randn(2, 8)
    expected = chain(x), variant(x)
    streamed = [stream(root, names_of(chain), slots) for root in (chain, variant)]
    for _ in range(2):
        assert torch.equal(streamed[0](x), expected[0])
        assert torch.equal(streamed[1](x), expected[1])
    assert not torch.equal(*expected)


def test_an_embedding_in_main_memory_gives_the_same_rows() -> None:
    """For any shape of ids."""
    table = nn.Embedding(7, 4)
    ids = torch.tensor([[1, 6, 0]])
    assert torch.equal(HostEmbedding(CPU, table)(ids), table(ids))


def test_to_host_keeps_every_bit() -> None:
    """Also of 8-bit floats."""
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8):
        tensor = torch.randn(3, 5).to(dtype)
        copied = to_host(tensor)
        assert copied.dtype is dtype
        assert torch.equal(copied.view(torch.uint8), tensor.view(torch.uint8))
