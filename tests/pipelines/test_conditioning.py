"""Prompts and references: encoded as diffusers does, with less work, and never mixed up."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from torch import nn

from pipelines.cache import TensorCache
from pipelines.conditioning import ReferenceEncoder, TextEncoder
from pipelines.flux2 import Flux2

CPU = torch.device("cpu")
PROMPTS = ("a lighthouse, oil on canvas", "", "灯台 🗼", "word " * 600)


@pytest.fixture
def text_encoder(oracle: Any) -> TextEncoder:
    """Return an encoder over diffusers' own parts, with an empty memory."""
    return TextEncoder(oracle, CPU, TensorCache(2**20 * 64, CPU))


@contextmanager
def counted(module: nn.Module) -> Iterator[Callable[[], int]]:
    """Count how often a module is run."""
    calls: list[None] = []
    hook = module.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield lambda: len(calls)
    finally:
        hook.remove()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_thirty_layers_give_what_all_of_them_give(
    text_encoder: TextEncoder, oracle: Any, prompt: str
) -> None:
    """To the bit, padding included; the layers after the thirtieth and the LM head do not run."""
    with torch.no_grad():
        expected, _ = oracle.encode_prompt(prompt)
    language = oracle.text_encoder.model.language_model
    with (
        counted(language.layers[29]) as last,
        counted(language.layers[30]) as behind,
        counted(oracle.text_encoder.lm_head) as head,
    ):
        assert torch.equal(text_encoder.encode(prompt), expected)
        assert (last(), behind(), head()) == (1, 0, 0)


def test_the_text_encoder_stays_whole(text_encoder: TextEncoder, oracle: Any) -> None:
    """Reading part of it takes nothing away: all layers are still there, and no hook is left."""
    layers = oracle.text_encoder.model.language_model.layers
    with torch.no_grad():
        before, _ = oracle.encode_prompt("a boat")
        hooks = [len(layer._forward_hooks) for layer in layers]
        text_encoder.encode("a boat")
        after, _ = oracle.encode_prompt("a boat")
    assert torch.equal(before, after)
    assert len(layers) == 32
    assert [len(layer._forward_hooks) for layer in layers] == hooks


def test_a_prompt_is_read_once(text_encoder: TextEncoder, oracle: Any) -> None:
    """The second time nothing runs, and the embedding is the same."""
    first = text_encoder.encode("a boat")
    with counted(oracle.text_encoder.model.language_model.layers[0]) as runs:
        assert torch.equal(text_encoder.encode("a boat"), first)
        assert runs() == 0


def test_prompts_and_system_messages_are_never_mixed_up(
    text_encoder: TextEncoder, oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that differ in a space have embeddings of their own, as have other instructions."""
    embeddings = [text_encoder.encode(prompt) for prompt in ("a boat", "a boat ", "A boat")]
    with monkeypatch.context() as patch:
        patch.setattr(oracle, "system_message", "Describe the weather.")
        embeddings.append(text_encoder.encode("a boat"))
    for index, one in enumerate(embeddings):
        assert not any(torch.equal(one, other) for other in embeddings[:index])
    assert torch.equal(text_encoder.encode("a boat"), embeddings[0])


def test_a_picture_is_encoded_once_whatever_its_name(oracle: Any, tmp_path: Path) -> None:
    """References are known by content; their places follow from their order in the request."""
    encoder = ReferenceEncoder(oracle, CPU, TensorCache(2**20 * 64, CPU))
    paths = [tmp_path / name for name in ("one.png", "copy.png", "other.png")]
    for path, colour in zip(paths, ("red", "red", "blue"), strict=True):
        Image.new("RGB", (96, 64), colour).save(path)
    with counted(oracle.vae.encoder) as runs:
        tokens, ids = encoder.encode(paths)
        assert runs() == 2
        turned, turned_ids = encoder.encode(paths[::-1])
        assert runs() == 2
    one, copy, other = tokens.tensor_split(3, dim=1)
    assert torch.equal(one, copy)
    assert not torch.equal(one, other)
    assert torch.equal(turned, torch.cat([other, copy, one], dim=1))
    assert torch.equal(ids, turned_ids)
    assert ids[0, ::24, 0].tolist() == [10, 20, 30]


def test_another_picture_under_the_same_name_is_another_picture(
    oracle: Any, tmp_path: Path
) -> None:
    """What is remembered is never an old file's."""
    encoder = ReferenceEncoder(oracle, CPU, TensorCache(2**20 * 64, CPU))
    path = tmp_path / "0.png"
    Image.new("RGB", (96, 64), "red").save(path)
    before, _ = encoder.encode([path])
    Image.new("RGB", (96, 64), "green").save(path)
    after, _ = encoder.encode([path])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_klein_s_reader_gives_what_all_of_it_gives(
    klein: Flux2, klein_model: Path, prompt: str
) -> None:
    """To the bit, padding included; of its 29 layers two do not run, nor does the LM head."""
    pipe = Flux2KleinPipeline.from_pretrained(klein_model, local_files_only=True)
    with torch.no_grad():
        expected, _ = pipe.encode_prompt(prompt)
    encoder = TextEncoder(pipe, CPU, TensorCache(2**20 * 64, CPU))
    layers = pipe.text_encoder.model.layers
    with (
        counted(layers[26]) as last,
        counted(layers[27]) as behind,
        counted(pipe.text_encoder.lm_head) as head,
    ):
        assert torch.equal(encoder.encode(prompt), expected)
        assert torch.equal(encoder.encode(prompt), expected)  # this one is remembered
        assert (last(), behind(), head()) == (1, 0, 0)
    assert torch.equal(klein.encode(prompt).prompt_embeds, expected)
