"""Eight-bit layers against plain arithmetic, and trees of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn

from pipelines.demonstration import DEMO_CHECKPOINT
from pipelines.quantisation import (
    LAYERS,
    QuantisedLinear,
    quantise_blocks,
)
from pipelines.types import Precision
from pipelines.variants import find_block_linears

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])

ROUND: dict[Precision, tuple[float, Callable[[Tensor], Tensor]]] = {
    Precision.FP8: (448.0, lambda values: values.to(torch.float8_e4m3fn).double()),
    Precision.INT8: (127.0, lambda values: values.round().double()),
}
LAYER_ERROR = {Precision.FP8: 0.05, Precision.INT8: 0.015}
"""Bounds of the relative error of a layer's output. Uniform rounding inside a binade with 3 bits of
mantissa is off by 2.6 % rms, of the weights and of the input: 3.7 % together. 127 steps up to the
largest of some hundred normal values, at about three deviations, make 0.7 % each."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Draw normal values in float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_linear(width: int = 192, height: int = 128) -> nn.Linear:
    """Make a layer without bias, of rows that differ in size."""
    linear = nn.Linear(width, height, bias=False).requires_grad_(requires_grad=False)
    linear.weight.copy_(draw(height, width, seed=1) * torch.logspace(-3, 1, height)[:, None])
    return linear


def make_layer(precision: Precision) -> QuantisedLinear:
    """Quantise that layer."""
    return LAYERS[precision](make_linear())


def compute_plainly(precision: Precision, x: Tensor, weight: Tensor) -> Tensor:
    """Do what the layer should do, value by value and in double precision."""
    limit, to_eight_bits = ROUND[precision]
    rows = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for i, token in enumerate(x):
        for j, row in enumerate(weight):
            a, b = token.abs().max() / limit, row.abs().max() / limit
            rows[i, j] = to_eight_bits(token / a) @ to_eight_bits(row / b) * a.double() * b.double()
    return rows


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Return the length of the difference over that of what was expected."""
    difference = torch.linalg.vector_norm(result.double() - expected.double())
    return float(difference / torch.linalg.vector_norm(expected.double()))


@BOTH
def test_a_layer_computes_what_plain_arithmetic_gives(precision: Precision) -> None:
    """In float32 nothing is lost but by the rounding to eight bits: not by sums, nor by scales."""
    linear, x = make_linear(32, 16), draw(5, 32)
    result = LAYERS[precision](linear)(x)
    expected = compute_plainly(precision, x, linear.weight)
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-12)


@BOTH
@pytest.mark.parametrize("tokens", [1, 16, 17, 300])
def test_the_error_is_that_of_eight_bits(precision: Precision, tokens: int) -> None:
    """For each row of the weights the layer is as near to the original as its numbers allow."""
    linear, x = make_linear(), draw(tokens, 192)
    sizes = linear.weight.norm(dim=1)
    result, expected = make_layer(precision)(x) / sizes, linear(x) / sizes
    assert relative_error(result, expected) < LAYER_ERROR[precision]
    if tokens == 300:  # of one token a row's result may be near zero by chance
        for row in range(128):
            assert relative_error(result[:, row], expected[:, row]) < LAYER_ERROR[precision]


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_it_went_in(precision: Precision, dtype: torch.dtype) -> None:
    """The result has the input's type and shape, and is the exact one rounded but for single ulps.

    In bfloat16 the fp8 layer runs the kernel that CUDA has too, which sums in float32.
    """
    layer, x = make_layer(precision), draw(2, 20, 192).to(dtype)
    result, exact = layer(x), layer(x.float())
    assert result.dtype == dtype
    assert result.shape == (2, 20, 128)
    torch.testing.assert_close(result.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_knows_nothing_of_the_others(precision: Precision, dtype: torch.dtype) -> None:
    """Whatever stands beside it, huge values too, a token's result is the same bit for bit."""
    layer, x = make_layer(precision), draw(60, 192).to(dtype)
    alone, together = layer(x[:1]), layer(x)
    assert torch.equal(alone, together[:1])
    assert torch.equal(layer(x[7:30]), together[7:30])
    x[1:] *= 1e6
    assert torch.equal(layer(x)[:1], alone)
    assert torch.equal(layer(x), layer(x))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_at_the_ends_of_the_range(precision: Precision, dtype: torch.dtype) -> None:
    """Zeros give zeros, huge and tiny values what they should; no NaN comes of any."""
    layer, x = make_layer(precision), draw(4, 192).to(dtype)
    expected = layer(x[1:])
    scale = torch.tensor([0.0, 2.0**100, 2.0**-100, 1.0], dtype=dtype)[:, None]
    result = layer(x * scale)
    assert torch.equal(result[0], torch.zeros(128, dtype=dtype))
    torch.testing.assert_close(result[1:] / scale[1:], expected, rtol=1e-6, atol=0)


@BOTH
def test_denormal_rows_and_no_rows(precision: Precision) -> None:
    """Values too small for a scale of their own are rounded to zero or near; no tokens give none.

    Weights of zeros give zeros.
    """
    layer = make_layer(precision)
    assert layer(torch.full((1, 192), 1e-44)).abs().max() < 1e-38
    assert layer(torch.zeros(0, 192)).shape == (0, 128)
    linear = make_linear()
    nn.init.zeros_(linear.weight)
    assert torch.equal(LAYERS[precision](linear)(draw(3, 192)), torch.zeros(3, 128))


@BOTH
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(precision: Precision, value: float) -> None:
    """Rounding to eight bits turns no overflow of an earlier layer into a plausible number."""
    x = draw(2, 192)
    x[0, 5] = value
    result = make_layer(precision)(x)
    assert not result[0].isfinite().any()
    assert result[1].isfinite().all()


@BOTH
@pytest.mark.parametrize(
    "linear", [nn.Linear(32, 32), nn.Linear(24, 32, bias=False), nn.Linear(32, 24, bias=False)]
)
def test_layers_that_do_not_fit_are_refused(precision: Precision, linear: nn.Linear) -> None:
    """A bias would be lost, and some widths no kernel takes: that is told when the layer is made.

    FLUX.2 has neither.
    """
    with pytest.raises(ValueError, match="has a bias, or a width not divisible by 16"):
        LAYERS[precision](linear)


@BOTH
def test_a_layer_can_be_traced_as_one_graph_for_all_sizes(precision: Precision) -> None:
    """`fullgraph` raises at a graph break, such as one at a look of the host at a value."""
    torch._dynamo.reset()
    graphs = []

    def note_graph(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    layer, x = make_layer(precision), draw(300, 192)
    traced = torch.compile(layer, fullgraph=True, dynamic=True, backend=note_graph)
    for tokens in (300, 40, 17):
        batch = x[:tokens].clone()
        assert torch.equal(traced(batch), layer(batch))
    assert len(graphs) == 1


@BOTH
def test_a_layer_can_be_compiled(precision: Precision) -> None:
    """Its operators have all that a compiler needs to know of them: shapes, strides, types."""
    torch._dynamo.reset()
    layer, x = make_layer(precision), draw(40, 192).to(torch.bfloat16)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))


@pytest.fixture(scope="module")
def original(demo_model: Path) -> Any:
    """Return the tiny checkpoint's transformer."""
    return Flux2Transformer2DModel.from_pretrained(demo_model / "transformer")


@torch.no_grad()
def run(transformer: Any) -> Tensor:
    """Compute one step on 24 image and 9 text tokens."""
    config = transformer.config
    velocity: Tensor = transformer(
        hidden_states=draw(1, 24, config.in_channels).to(transformer.dtype),
        encoder_hidden_states=draw(1, 9, config.joint_attention_dim, seed=2).to(transformer.dtype),
        timestep=torch.tensor([0.7]),
        img_ids=torch.arange(96).reshape(1, 24, 4) % 7,
        txt_ids=torch.arange(36).reshape(1, 9, 4) % 5,
        guidance=torch.tensor([2.5]),
        return_dict=False,
    )[0]
    return velocity


@BOTH
def test_only_the_blocks_are_quantised(original: Any, precision: Precision) -> None:
    """The original keeps every bit; all that is no linear layer of a block is the same object."""
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    layers = find_block_linears(original)
    quantised = quantise_blocks(original, precision)
    assert {
        name for name, module in quantised.named_modules() if isinstance(module, QuantisedLinear)
    } == layers.keys()
    assert not find_block_linears(quantised)
    assert find_block_linears(original) == layers
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, before[name])
    theirs = dict(quantised.named_parameters())
    for name, parameter in original.named_parameters():
        if name.removesuffix(".weight") not in layers:
            assert theirs[name] is parameter
    assert quantised.x_embedder is original.x_embedder
    assert quantised.transformer_blocks[0].norm1 is original.transformer_blocks[0].norm1


@BOTH
def test_a_quantised_transformer_computes_nearly_the_same(precision: Precision) -> None:
    """In a trained transformer the error is about that of one layer, after six blocks too.

    Not so in the tiny one: its random blocks magnify bfloat16's rounding to 34 % already.
    """
    trained = Flux2Transformer2DModel.from_pretrained(DEMO_CHECKPOINT / "transformer")
    error = relative_error(run(quantise_blocks(trained, precision)), run(trained))
    assert 0 < error < 2 * LAYER_ERROR[precision]


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BFLOAT16])
def test_other_precisions_are_refused(original: Any, precision: Precision) -> None:
    """Only eight bits are a matter of this module."""
    with pytest.raises(ValueError, match=f"cannot be quantised to {precision}"):
        quantise_blocks(original, precision)
