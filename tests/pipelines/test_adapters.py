"""LoRAs of callers: as diffusers puts them on, and gone without a trace afterwards."""

import copy
import hashlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch._dynamo.utils import counters

from pipelines.adapters import Adapted, AdaptedLinear
from pipelines.assembly import assemble
from pipelines.denoiser import Denoiser
from pipelines.errors import CancelledError, LoraError, LoraRefusedError
from pipelines.flux2 import Flux2
from pipelines.lora_file import find_widths, read_fitting
from pipelines.plan import Layout
from pipelines.quantisation import quantise_blocks
from pipelines.transformers import Transformers, Tree
from pipelines.types import LoadOptions, LoraUse, Precision, Step
from tests.pipelines.lora_files import (
    FORMATS,
    PEFT,
    bfl_layers,
    make_formats,
    make_lokr,
    make_pairs,
)
from tests.pipelines.one_step import call, make_inputs
from tests.pipelines.test_flux2 import make_images, make_latents, make_request

CPU = torch.device("cpu")
LAYOUT = Layout(exact=True, exact_precision=Precision.FLOAT32)
MOST_ERROR = 1e-5
"""How far sums in another order may be from diffusers'."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def inputs(flux2: Flux2) -> dict[str, torch.Tensor]:
    """Return what the transformer is called with in one step."""
    return make_inputs(flux2)


@pytest.fixture(scope="module")
def files(oracle: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a file of each format."""
    folder = tmp_path_factory.mktemp("loras")
    paths = {}
    for name, tensors in make_formats(oracle.transformer).items():
        paths[name] = folder / f"{name}.safetensors"
        save_file(tensors, paths[name])
    return paths


def make_plain(transformer: Any) -> Any:
    """Return diffusers' pipeline with nothing but a transformer of its own."""
    from diffusers import Flux2Pipeline

    parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer"))
    return Flux2Pipeline(**parts, transformer=copy.deepcopy(transformer))


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return how far the first is from the second."""
    return float((one - other).norm() / other.norm())


def put_on(transformer: Any, *uses: tuple[Path, float]) -> Any:
    """Return a tree like this one with these files on."""
    adapted, widths = Adapted(transformer, lambda tree: tree), find_widths(transformer)
    adapted.put_on([(read_fitting(path, widths).to(CPU, torch.float32), s) for path, s in uses])
    return adapted.denoiser.transformer


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_what_diffusers_makes_of_it(
    oracle: Any,
    files: dict[str, Path],
    inputs: dict[str, torch.Tensor],
    name: str,
) -> None:
    """And the transformer that it is put on is left as it was, to the bit."""
    before = call(oracle.transformer, inputs)
    pipe = make_plain(oracle.transformer)
    pipe.load_lora_weights(files[name].parent, weight_name=files[name].name)
    expected = call(pipe.transformer, inputs)
    result = call(put_on(oracle.transformer, (files[name], 1.0)), inputs)
    assert relative_error(result, expected) < MOST_ERROR < relative_error(result, before)
    assert torch.equal(call(oracle.transformer, inputs), before)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # of peft, for each further one
def test_several_are_added_as_diffusers_adds_them(
    oracle: Any, files: dict[str, Path], inputs: dict[str, torch.Tensor]
) -> None:
    """Each with its scale, a hundredth of which shows; three of different ranks and names."""
    scales = {"diffusers": 0.7, "kohya": 1.6, "ai-toolkit": 0.3}
    pipe = make_plain(oracle.transformer)
    for name in scales:
        path = files[name]
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name[:5])
    pipe.set_adapters([name[:5] for name in scales], list(scales.values()))
    expected = call(pipe.transformer, inputs)
    uses = [(files[name], scale) for name, scale in scales.items()]
    result = call(put_on(oracle.transformer, *uses), inputs)
    assert relative_error(result, expected) < MOST_ERROR
    other = call(put_on(oracle.transformer, *uses[:2], (files["ai-toolkit"], 0.31)), inputs)
    assert relative_error(other, expected) > 10 * MOST_ERROR


@pytest.mark.parametrize("sides", [{"w1"}, {"w1", "w2"}])
def test_a_lokr_in_factors_is_their_kronecker_product(
    oracle: Any, tmp_path: Path, sides: set[str]
) -> None:
    """Which diffusers cannot load. It is strong by alpha over the rank of what is factored."""
    torch.manual_seed(6)
    layers = {"double_blocks.0.txt_attn.qkv": bfl_layers()["double_blocks.0.txt_attn.qkv"]}
    tensors = make_lokr(oracle.transformer, layers, str, factors=frozenset(sides), alpha=3.0)
    save_file(tensors, tmp_path / "lokr.safetensors")
    lora = read_fitting(tmp_path / "lokr.safetensors", find_widths(oracle.transformer))
    parts = {key.rpartition(".lokr_")[2]: tensor for key, tensor in tensors.items()}
    left, right = (
        parts[f"{side}_a"] @ parts[f"{side}_b"] if side in sides else parts[side]
        for side in ("w1", "w2")
    )
    expected = torch.kron(left, right) * 3.0 / 2
    for layer, share in zip(layers.popitem()[1], expected.chunk(3), strict=True):
        torch.testing.assert_close(lora.additions[layer].delta(), share)


@pytest.mark.parametrize("kind", ["pair", "LoKr"])
def test_the_halves_of_the_last_modulation_change_places(
    oracle: Any, tmp_path: Path, kind: str
) -> None:
    """Black Forest Labs have shift before scale, diffusers scale before shift."""
    torch.manual_seed(7)
    layers = {"final_layer.adaLN_modulation.1": ("norm_out.linear",)}
    if kind == "pair":
        tensors = make_pairs(oracle.transformer, layers, str, PEFT)
        down, up = (next(t for key, t in tensors.items() if half in key) for half in PEFT)
        theirs = up @ down
    else:
        tensors = make_lokr(oracle.transformer, layers, str)
        left, right = (tensors[f"final_layer.adaLN_modulation.1.lokr_{s}"] for s in ("w1", "w2"))
        theirs = torch.kron(left, right)
    save_file(tensors, tmp_path / "lora.safetensors")
    lora = read_fitting(tmp_path / "lora.safetensors", find_widths(oracle.transformer))
    shift, scale = theirs.chunk(2)
    torch.testing.assert_close(lora.additions["norm_out.linear"].delta(), torch.cat([scale, shift]))
    lines = torch.randn(3, 64)
    added = torch.zeros(3, 128)
    lora.additions["norm_out.linear"].add_to(added, lines, 2.0)
    torch.testing.assert_close(added, 2 * lines @ torch.cat([scale, shift]).t())


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])
def test_they_go_on_quantised_blocks_and_leave_these_alone(
    oracle: Any, files: dict[str, Path], inputs: dict[str, torch.Tensor], precision: Precision
) -> None:
    """The result is about as far from the exact one as without a LoRA, by the rounded weights."""
    eight = quantise_blocks(oracle.transformer, precision)
    before = call(eight, inputs)
    with_lora = call(put_on(eight, (files["diffusers"], 1.0)), inputs)
    exact = call(put_on(oracle.transformer, (files["diffusers"], 1.0)), inputs)
    rounding = relative_error(before, call(oracle.transformer, inputs))
    assert relative_error(with_lora, exact) < 2 * rounding < relative_error(with_lora, before)
    assert torch.equal(call(eight, inputs), before)


def test_a_transformer_without_guidance_has_them_too(tmp_path: Path) -> None:
    """As klein's are: by the same names, but for the layers that are not there."""
    from diffusers import Flux2Transformer2DModel

    klein = Flux2Transformer2DModel(
        in_channels=128,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=96,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    path = tmp_path / "klein.safetensors"
    save_file(make_pairs(klein, bfl_layers(), "diffusion_model.{}".format, PEFT), path)
    lora = read_fitting(path, find_widths(klein))
    assert lora.additions.keys() == {name for names in bfl_layers().values() for name in names}
    save_file({f"guidance_in.in_layer.{half}": torch.ones(4, 4) for half in PEFT}, path)
    with pytest.raises(LoraError, match=r"guidance_in.in_layer is no linear layer of this"):
        read_fitting(path, find_widths(klein))


@pytest.fixture(scope="module")
def adapted_flux2(oracle: Any, demo_model: Path) -> Flux2:
    """Return our pipeline over the oracle's parts, as it is made ready for requests."""
    options = LoadOptions(model=demo_model, compile="off")
    return Flux2(oracle, CPU, assemble(oracle.transformer, CPU, options, LAYOUT))


def use(path: Path, scale: float = 1.0) -> tuple[LoraUse, ...]:
    """Return settings' LoRAs: this one."""
    return (LoraUse(path, scale),)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_a_request_is_diffusers_image_and_the_next_one_has_no_trace_of_it(
    oracle: Any, adapted_flux2: Flux2, files: dict[str, Path]
) -> None:
    """Latents of all steps, with two LoRAs as `set_adapters` puts them on; then without."""
    before = make_latents(adapted_flux2, make_request())
    uses = (LoraUse(files["diffusers"], 0.8), LoraUse(files["kohya"], 1.5))
    result = make_latents(adapted_flux2, make_request(loras=uses))
    assert torch.equal(make_latents(adapted_flux2, make_request()), before)
    pipe = make_plain(oracle.transformer)
    for index, one in enumerate(uses):
        pipe.load_lora_weights(one.path.parent, weight_name=one.path.name, adapter_name=f"a{index}")
    pipe.set_adapters(["a0", "a1"], [0.8, 1.5])
    tree = Tree(denoiser=Denoiser(pipe.transformer), precision=Precision.FLOAT32)
    theirs = Flux2(oracle, CPU, Transformers(exact=tree))
    expected = make_latents(theirs, make_request())
    assert relative_error(result, expected) < 10 * MOST_ERROR  # of four steps
    assert relative_error(result, before) > 0.01


def test_whatever_becomes_of_a_request_the_next_one_has_no_trace_of_it(
    adapted_flux2: Flux2, files: dict[str, Path], tmp_path: Path
) -> None:
    """Cancelled at a step, left after an image, refused for a file, and out of memory."""
    before = make_images(adapted_flux2, make_request())[0].image.tobytes()
    request = make_request(num_images=2, loras=use(files["kohya"]))
    asked = iter([False, False, False, True])
    with pytest.raises(CancelledError):
        list(adapted_flux2.generate(request, lambda _: None, lambda: next(asked)))
    left = adapted_flux2.generate(request, lambda _: None, lambda: False)
    assert next(left).image.tobytes() != before
    bad = tmp_path / "bad.safetensors"
    save_file({"double_blocks.9.img_mlp.0.alpha": torch.ones(1)}, bad)
    refused = make_request(loras=(*use(files["kohya"]), *use(bad)))
    with pytest.raises(LoraRefusedError, match=r"double_blocks\.9") as caught:
        make_images(adapted_flux2, refused)
    assert caught.value.index == 1
    assert str(tmp_path) not in str(caught.value)
    assert make_images(adapted_flux2, make_request())[0].image.tobytes() == before
    del left
    adapted_flux2.release_memory()
    assert make_images(adapted_flux2, make_request())[0].image.tobytes() == before


@pytest.mark.parametrize("images", [1, 3])
def test_the_loras_of_a_request_leave_the_device_with_it(
    oracle: Any, demo_model: Path, files: dict[str, Path], images: int
) -> None:
    """What may not be kept between requests is gone after the last image, or when it is left."""
    options = LoadOptions(model=demo_model, compile="off", lora_cache_bytes=0)
    transformers = assemble(oracle.transformer, CPU, options, LAYOUT)
    request = make_request(num_images=2, loras=use(files["kohya"]))
    held = []

    def note(_step: Step) -> None:
        held.append(transformers.lora_bytes)

    made = Flux2(oracle, CPU, transformers).generate(request, note, lambda: False)
    seen = [image.index for image in itertools.islice(made, images)]
    del made
    assert seen == [0, 1][:images]
    assert min(held) > 0 == transformers.lora_bytes
    layers = [
        layer
        for tree in transformers.with_adapted
        for layer in tree.denoiser.transformer.modules()
        if isinstance(layer, AdaptedLinear)
    ]
    assert layers
    assert not any(layer.put_on for layer in layers)


def test_interleaved_requests_have_each_their_own(
    adapted_flux2: Flux2, files: dict[str, Path]
) -> None:
    """A request whose second image is drawn after another's is no different for it."""
    request = make_request(num_images=2, loras=use(files["kohya"]))
    expected = [made.image.tobytes() for made in make_images(adapted_flux2, request)]
    images = adapted_flux2.generate(request, lambda _: None, lambda: False)
    result = [next(images).image.tobytes()]
    other = make_images(adapted_flux2, make_request(loras=use(files["diffusers"])))
    result += [made.image.tobytes() for made in images]
    assert result == expected
    assert other[0].image.tobytes() not in expected


def test_a_scale_of_nothing_is_the_base_to_the_bit(
    adapted_flux2: Flux2, files: dict[str, Path]
) -> None:
    """And what is put on is told by its content and its scale."""
    settings = make_request(loras=use(files["kohya"], 0.0)).settings
    assert torch.equal(
        make_latents(adapted_flux2, make_request(loras=settings.loras)),
        make_latents(adapted_flux2, make_request()),
    )
    digest = hashlib.sha256(files["kohya"].read_bytes()).hexdigest()
    assert adapted_flux2.describe(settings)["loras"] == f"{digest[:12]}*0"
    assert "loras" not in adapted_flux2.describe(make_request().settings)


def test_flash_takes_none(oracle: Any, demo_model: Path, files: dict[str, Path]) -> None:
    """No endpoint asks for that, and it must not be left out in silence."""
    layout = Layout(exact=True, exact_precision=Precision.FLOAT32, flash="attached")
    flux2 = assemble(oracle.transformer, CPU, LoadOptions(model=demo_model), layout)
    with pytest.raises(ValueError, match="takes no LoRAs"):
        flux2.choose(make_request(flash=True, loras=use(files["kohya"])).settings)


def test_streamed_blocks_take_them(oracle: Any, demo_model: Path, files: dict[str, Path]) -> None:
    """Their weights pass through slots; what is put on stays where it is."""
    plain, streamed = (
        Flux2(
            oracle,
            CPU,
            assemble(
                copy.deepcopy(oracle.transformer),
                CPU,
                LoadOptions(model=demo_model),
                Layout(exact=True, exact_precision=Precision.FLOAT32, blocks=blocks),
            ),
        )
        for blocks in ("resident", "streamed")
    )
    request = make_request(loras=use(files["ai-toolkit"]))
    assert torch.equal(make_latents(streamed, request), make_latents(plain, request))
    assert torch.equal(make_latents(streamed, make_request()), make_latents(plain, make_request()))


# torch's inductor imports a module of its own that is deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_lora_costs_no_compilation(
    oracle: Any, files: dict[str, Path], inputs: dict[str, torch.Tensor]
) -> None:
    """Of any format, rank and number: one graph for each kind of block serves all of them.

    The double blocks are left to the compiler's front alone: their kernels would take a minute.
    """
    widths = find_widths(oracle.transformer)
    loras = {
        name: read_fitting(path, widths).to(CPU, torch.float32) for name, path in files.items()
    }

    def make_ready(tree: Any) -> Any:
        for block in tree.single_transformer_blocks:
            block.compile(fullgraph=True, dynamic=True)
        for block in tree.transformer_blocks:
            block.compile(fullgraph=True, dynamic=True, backend="aot_eager")
        return tree

    compiled = Adapted(oracle.transformer, make_ready)
    plain = Adapted(oracle.transformer, lambda tree: tree)
    call(compiled.denoiser.transformer, inputs)
    counters.clear()
    for uses in (
        [(loras["diffusers"], 1.0)],
        [(loras["kohya"], 0.5), (loras["ai-toolkit"], 2.0), (loras["peft"], 1.0)],
        [(loras["LoKr of ai-toolkit"], 1.0)],
        [],
    ):
        for adapted in (compiled, plain):
            adapted.put_on(uses)
        result, expected = (
            call(adapted.denoiser.transformer, inputs) for adapted in (compiled, plain)
        )
        assert relative_error(result, expected) < 1e-4
    assert counters["stats"].get("unique_graphs", 0) == 0
