"""Parameters counted from configurations, against models that are really built."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.compat import declare_torchvision_operators

# Before diffusers is imported, as `load_pipeline` does.
declare_torchvision_operators()

import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from pipelines.demonstration import DEMO_CHECKPOINT  # noqa: E402
from pipelines.errors import ModelNotFoundError  # noqa: E402
from pipelines.model_size import ModelSize, read_model_size  # noqa: E402
from pipelines.tools.demo_model import turbo_lora_layers  # noqa: E402
from pipelines.types import TURBO_LORA_PATH  # noqa: E402
from pipelines.variants import find_block_linears  # noqa: E402
from tests.pipelines.test_memory import REAL  # noqa: E402

LANGUAGE = {
    "model_type": "mistral",
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_hidden_layers": 40,
    "vocab_size": 131072,
    "head_dim": 128,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {},
    "vae": {},
    "text_encoder": {
        "text_config": LANGUAGE,
        "vision_config": {"model_type": "pixtral", "patch_size": 14},
        "tie_word_embeddings": False,
    },
}
"""FLUX.2 [dev]: as in the libraries' defaults but for what is named."""


def write_configs(folder: Path, configs: dict[str, Any]) -> Path:
    """Write config.json files and nothing else."""
    for component, config in configs.items():
        (folder / component).mkdir(parents=True, exist_ok=True)
        (folder / component / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def load(folder: Path) -> dict[str, Any]:
    """Build the three models of a folder without their weights."""
    with torch.device("meta"):
        transformer = diffusers.Flux2Transformer2DModel
        vae = diffusers.AutoencoderKLFlux2
        text = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
        reader: Any = transformers.Mistral3ForConditionalGeneration
        if text.get("model_type") == "qwen3":
            reader = transformers.Qwen3ForCausalLM
        config = reader.config_class.from_pretrained(folder / "text_encoder")
        return {
            "transformer": transformer.from_config(transformer.load_config(folder / "transformer")),
            "vae": vae.from_config(vae.load_config(folder / "vae")),
            "text_encoder": reader(config),
        }


def count(module: Any) -> int:
    """Count the parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def measure(models: dict[str, Any], lora_bytes: int) -> ModelSize:
    """Measure built models, part by part."""
    transformer, text = models["transformer"], models["text_encoder"]
    linears = find_block_linears(transformer)
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    changed = turbo_lora_layers(transformer)
    flash = [linear for name, linear in changed.items() if name in linears]
    is_mistral = hasattr(text.model, "language_model")
    language = text.model.language_model if is_mistral else text.model
    seeing = [text.model.vision_tower, text.model.multi_modal_projector] if is_mistral else []
    is_tied = not is_mistral and text.config.tie_word_embeddings
    return ModelSize(
        block_linears=sum(map(count, linears.values())),
        block_rows=sum(linear.out_features for linear in linears.values()),
        largest_block=max(
            sum(count(part) for part in block.modules() if isinstance(part, torch.nn.Linear))
            for block in blocks
        ),
        transformer_others=count(transformer) - sum(map(count, linears.values())),
        flash_linears=sum(map(count, flash)),
        flash_rows=sum(linear.out_features for linear in flash),
        flash_others=sum(map(count, changed.values())) - sum(map(count, flash)),
        text_layer=count(language.layers[0]),
        text_layers=len(language.layers),
        text_embedding=count(language.embed_tokens),
        prompt_layers=min(len(language.layers), 30 if is_mistral else 27),
        text_rest=count(language.norm) + sum(map(count, seeing)),
        lm_head=0 if is_tied else count(text.lm_head),
        vae=count(models["vae"]),
        width=transformer.inner_dim,
        vae_width=models["vae"].decoder.up_blocks[-1].resnets[0].in_channels,
        lora_bytes=lora_bytes,
    )


def test_the_tiny_checkpoint_is_counted_to_the_parameter(demo_model: Path) -> None:
    """Every number, against diffusers' and transformers' own modules."""
    lora_bytes = (demo_model / TURBO_LORA_PATH).stat().st_size

    assert read_model_size(demo_model) == measure(load(demo_model), lora_bytes)


def test_the_demonstration_checkpoint_is_counted_to_the_parameter() -> None:
    """Whose VAE has other widths on its way back, and whose vision tower is another."""
    lora_bytes = (DEMO_CHECKPOINT / TURBO_LORA_PATH).stat().st_size

    assert read_model_size(DEMO_CHECKPOINT) == measure(load(DEMO_CHECKPOINT), lora_bytes)


def test_the_real_model_is_counted_to_the_parameter(tmp_path: Path) -> None:
    """32.2 billion, 24.0 billion and 84 million, as its modules have on the meta device."""
    folder = write_configs(tmp_path, CONFIGS)
    lora = folder / TURBO_LORA_PATH
    lora.parent.mkdir()
    with lora.open("wb") as file:
        file.truncate(REAL.lora_bytes)  # a hole: it takes no room on the disk

    size = read_model_size(folder)
    assert size == REAL == measure(load(folder), REAL.lora_bytes)
    assert (size.transformer, size.text_encoder) == (32_223_281_152, 24_011_361_280)
    assert round(size.vae / 1e6, 2) == 84.05


def test_other_shapes_are_counted_too(tmp_path: Path) -> None:
    """Switches that FLUX.2 [dev] leaves alone: a part missing, biases, tied embeddings."""
    transformer = {
        "guidance_embeds": False,
        "num_layers": 1,
        "num_single_layers": 0,
        "out_channels": 64,
        "mlp_ratio": 2.5,
        "num_attention_heads": 2,
    }
    vae = {
        "block_out_channels": [32],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    text = {
        "text_config": LANGUAGE | {"num_hidden_layers": 2, "head_dim": None},
        "vision_config": {"model_type": "pixtral", "num_hidden_layers": 1},
        "multimodal_projector_bias": True,
        "vision_feature_layer": [-1, -2],
    }
    folder = write_configs(tmp_path, {"transformer": transformer, "vae": vae, "text_encoder": text})
    expected = measure(load(folder), 0)

    assert read_model_size(folder) == expected
    tied = write_configs(tmp_path, {"text_encoder": text | {"tie_word_embeddings": True}})
    assert read_model_size(tied).lm_head == 0


def test_sizes_in_bytes() -> None:
    """The figures that plans are made of: fp8 blocks, fused LoRA, text encoder for prompts."""
    assert REAL.blocks_bytes(2) == 2 * REAL.block_linears
    assert REAL.blocks_bytes(1) == REAL.block_linears + 4 * REAL.block_rows
    assert round(REAL.fused_bytes(1, 2) / 1e9, 1) == 27.5
    prompts = REAL.text_layers_of(whole=False) + REAL.text_around_of(whole=False)
    assert round(2 * prompts / 1e9, 1) == 34.7
    whole = REAL.text_layers_of(whole=True) + REAL.text_around_of(whole=True)
    assert whole == REAL.text_encoder


@pytest.mark.parametrize(
    ("component", "content", "problem"),
    [
        ("vae", None, "vae/config.json: No such file"),
        ("transformer", "{", "transformer/config.json: not a configuration of FLUX.2"),
        ("text_encoder", "{}", "text_encoder/config.json: not a configuration .*text_config"),
        ("vae", '{"block_out_channels": 3}', "vae/config.json: not a configuration"),
        ("transformer", "[]", "transformer/config.json: not a configuration"),
    ],
)
def test_a_broken_configuration_is_named(
    tmp_path: Path, component: str, content: str | None, problem: str
) -> None:
    """With its path, whatever is wrong with it."""
    folder = write_configs(tmp_path, CONFIGS)
    path = folder / component / "config.json"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")

    with pytest.raises(ModelNotFoundError, match=problem):
        read_model_size(folder)


def test_the_lora_may_lie_elsewhere(demo_model: Path, tmp_path: Path) -> None:
    """Its file is what counts; without one there is none."""
    lora = tmp_path / "my.safetensors"
    assert read_model_size(demo_model, lora).lora_bytes == 0
    lora.write_bytes(b"1234")
    assert read_model_size(demo_model, lora).lora_bytes == 4
