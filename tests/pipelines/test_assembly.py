"""The transformers of a loaded model: which there are, and that compiling them changes little."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.assembly import assemble
from pipelines.flux2 import Flux2
from pipelines.plan import Layout
from pipelines.types import TURBO_LORA_PATH, LoadOptions, Precision
from tests.pipelines.test_flux2 import make_latents, make_request

CPU = torch.device("cpu")
LAYOUT = Layout(exact=True, exact_precision=Precision.FLOAT32, flash="fused")
MOST_ERROR, LEAST_PSNR = 1e-4, 60.0
"""How far compiled float32 may be from what is not compiled: rounding, and no more."""


def test_a_cpu_holds_the_exact_transformer_and_the_flash_one(oracle: Any, demo_model: Path) -> None:
    """Nothing is quantised or compiled there unless it is asked for."""
    transformers = assemble(oracle.transformer, CPU, LoadOptions(model=demo_model), LAYOUT)
    assert transformers.exact
    assert transformers.exact.denoiser.transformer is oracle.transformer
    assert transformers.exact.precision is Precision.FLOAT32
    assert transformers.fast is None
    assert transformers.flash
    assert transformers.flash.lora == TURBO_LORA_PATH.stem
    assert not any(tree.compiled for tree in transformers.all)


def test_the_flash_lora_may_lie_elsewhere(oracle: Any, demo_model: Path, tmp_path: Path) -> None:
    """The operator's file counts, not the model folder's; callers learn no path."""
    options = LoadOptions(model=demo_model, flash_lora=tmp_path / "mine.safetensors")
    missing = assemble(oracle.transformer, CPU, options, LAYOUT)
    assert missing.flash is None
    assert "mine.safetensors is missing" in missing.flash_problem
    assert str(tmp_path) not in missing.flash_problem
    (tmp_path / "mine.safetensors").write_bytes((demo_model / TURBO_LORA_PATH).read_bytes())
    flash = assemble(oracle.transformer, CPU, options, LAYOUT).flash
    assert flash
    assert flash.lora == "mine"


def test_a_lora_of_any_name_can_be_told_in_a_header(
    oracle: Any, demo_model: Path, tmp_path: Path
) -> None:
    """What a header cannot hold, or would end the value early, is replaced."""
    path = tmp_path / "é, x=1.safetensors"
    path.write_bytes((demo_model / TURBO_LORA_PATH).read_bytes())
    options = LoadOptions(model=demo_model, flash_lora=path)
    flash = assemble(oracle.transformer, CPU, options, LAYOUT).flash
    assert flash
    assert flash.lora == "___x_1"


def test_a_flash_lora_that_cannot_be_used_takes_nothing_else_along(
    oracle: Any, demo_model: Path, tmp_path: Path
) -> None:
    """The other endpoints are served, and flash says that it cannot be."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"PK\x03\x04 a zip file")
    options = LoadOptions(model=demo_model, flash_lora=path)
    transformers = assemble(oracle.transformer, CPU, options, LAYOUT)
    assert transformers.exact
    assert transformers.flash is None
    assert "bad.safetensors cannot be used" in transformers.flash_problem


# torch's inductor imports a module of its own that is deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_blocks_give_the_same_but_for_rounding(
    demo_model: Path, references: tuple[Path, ...]
) -> None:
    """At several sizes, with and without references, in one graph for each kind of block."""
    from diffusers import Flux2Pipeline

    pipes = [Flux2Pipeline.from_pretrained(demo_model, local_files_only=True) for _ in range(2)]
    plain, compiled = (
        Flux2(
            pipe,
            CPU,
            assemble(pipe.transformer, CPU, LoadOptions(model=demo_model, compile=on), LAYOUT),
        )
        for pipe, on in zip(pipes, ("off", "on"), strict=True)
    )
    for request in (
        make_request(),
        make_request(width=256, height=160),
        make_request(references=references[:2]),
    ):
        expected, latents = make_latents(plain, request), make_latents(compiled, request)
        assert (latents - expected).norm() <= MOST_ERROR * expected.norm()
        pictures = [
            torch.frombuffer(bytearray(flux.decode(made, *size).tobytes()), dtype=torch.uint8)
            for size in [(request.settings.width, request.settings.height)]
            for flux, made in ((plain, expected), (compiled, latents))
        ]
        error = (pictures[0].float() - pictures[1].float()).square().mean()
        assert 10 * torch.log10(255**2 / error.clamp(min=1e-9)) >= LEAST_PSNR
    assert compiled.describe(make_request().settings)["compile"] == "on"
