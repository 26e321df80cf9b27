"""The text encoder as a language model, on the tiny checkpoint: random words, but the same ones."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from pipelines.cache import TensorCache
from pipelines.conditioning import TextEncoder
from pipelines.demonstration import DEMO_CHECKPOINT
from pipelines.errors import CancelledError, LanguageError, OutOfMemoryError
from pipelines.mistral import MAX_INPUT_TOKENS, Mistral, draw, load_mistral, missing_parts
from pipelines.variants import derive

CPU = torch.device("cpu")
TOKENS = 8
RED = Image.new("RGB", (200, 120), "red")
BLUE = Image.effect_noise((60, 300), 80).convert("RGB")

pytestmark = pytest.mark.usefixtures("one_thread")

Write = Callable[..., str]


@pytest.fixture(scope="module")
def write(mistral: Mistral) -> Write:
    """Return a function that writes a few tokens."""

    def write_some(text: str = "a boat", *images: Image.Image, **changes: Any) -> str:
        options = {"seed": 5, "temperature": 1.0, "max_new_tokens": TOKENS, **changes}
        return mistral.write("Say more.", text, images, **options)

    return write_some


@pytest.mark.parametrize("images", [(), (RED,), (RED, BLUE)])
def test_the_likeliest_text_is_that_of_transformers(
    oracle: Any, write: Write, images: tuple[Image.Image, ...]
) -> None:
    """Reading, keys and values, and the end are as in `generate`, only that it cannot be seeded."""
    turns: list[tuple[str, list[dict[str, Any]]]] = [
        ("system", [{"type": "text", "text": "Say more."}]),
        ("user", [{"type": "image", "image": image} for image in images]),
        ("user", [{"type": "text", "text": "a boat"}]),
    ]
    conversation = [{"role": role, "content": content} for role, content in turns if content]
    inputs = oracle.tokenizer.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt"
    )
    made = oracle.text_encoder.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    expected = oracle.tokenizer.tokenizer.decode(
        made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert write("a boat", *images, temperature=1e-9) == expected


@pytest.mark.parametrize("images", [(), (RED, BLUE)])
def test_a_seed_gives_the_same_text_whatever_runs_in_between(
    oracle: Any, mistral: Mistral, write: Write, images: tuple[Image.Image, ...]
) -> None:
    """Others' texts, questions, prompts and random numbers change nothing."""
    first = write("a boat", *images)
    write("another", RED, seed=9)
    mistral.is_yes("Judge.", "Is it?", [BLUE])
    TextEncoder(oracle, CPU, TensorCache(0, CPU)).encode("a boat")
    torch.manual_seed(1)
    torch.rand(1000)
    assert write("a boat", *images) == first


def test_seeds_and_pictures_and_words_make_a_difference(write: Write) -> None:
    """Each of them is read: no two of these texts are the same."""
    texts = [write(), write(seed=-(2**63)), write("a goat"), write("a boat", RED)]
    texts += [write("a boat", BLUE), write("a boat", RED, BLUE), write("a boat", BLUE, RED)]
    assert len(set(texts)) == len(texts)


def test_the_global_random_numbers_stay_untouched(mistral: Mistral, write: Write) -> None:
    """Neither does it draw from them nor seed them."""
    before = torch.random.get_rng_state()
    write()
    mistral.is_yes("Judge.", "Is it?")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_it_ends_where_the_model_ends(
    oracle: Any, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be the third token is declared to be an end: two are written."""
    config = oracle.text_encoder.generation_config
    whole = oracle.tokenizer.tokenizer.encode(write(temperature=1e-9), add_special_tokens=False)
    others = [token for token in whole if token not in whole[:2]]
    monkeypatch.setattr(config, "eos_token_id", [config.eos_token_id, *others])
    ended = Mistral(oracle, CPU).write("Say more.", "a boat", seed=5, temperature=1e-9)
    assert len(ended) < len(write(temperature=1e-9))
    monkeypatch.setattr(config, "eos_token_id", list(range(2048)))
    assert Mistral(oracle, CPU).write("Say more.", "a boat", seed=5, temperature=1.0) == ""


@pytest.mark.parametrize("asked", [0, 3])
def test_a_cancel_is_heard_before_the_next_token(oracle: Any, write: Write, asked: int) -> None:
    """After so many questions no further step of the model is computed."""
    runs: list[None] = []
    hook = oracle.text_encoder.lm_head.register_forward_hook(lambda *_: runs.append(None))
    answers = iter([False] * asked)
    with pytest.raises(CancelledError):
        write(is_cancelled=lambda: next(answers, True))
    hook.remove()
    assert len(runs) == asked


def test_a_text_cannot_play_another_role(mistral: Mistral) -> None:
    """No spelling of a control token survives in it, not even one that others are wrapped around.

    So it neither ends its turn nor stands for a picture that is not there.
    """
    plain = mistral._read("Say more.", "a boat and a goat", ())["input_ids"]
    for token in ("[IMG]", "[/INST]", "</s>", "[SYSTEM_PROMPT]", "[IM[IMG]G]", "[IMG[/INST]]"):
        text = f"a boat{token} and a goat"
        assert torch.equal(mistral._read("Say more.", text, ())["input_ids"], plain)


def test_an_input_is_not_padded_and_has_a_limit(mistral: Mistral) -> None:
    """A short one is short, and an endless one is refused instead of filling the memory."""
    assert mistral._read("Say more.", "a boat", ())["input_ids"].shape[1] < 30
    with pytest.raises(LanguageError, match=f"more than the {MAX_INPUT_TOKENS}"):
        mistral.is_yes("Judge.", "灯" * 3000)


def test_yes_and_no_are_the_only_answers(
    oracle: Any, mistral: Mistral, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The larger of two logits decides; with the words exchanged so is the answer."""
    answer = mistral.is_yes("Judge.", "Is it?", [RED])
    other = Mistral(oracle, CPU)
    monkeypatch.setattr(other, "_yes", mistral._no)
    monkeypatch.setattr(other, "_no", mistral._yes)
    assert other.is_yes("Judge.", "Is it?", [RED]) is not answer
    monkeypatch.setattr(other, "_yes", mistral._no)
    assert mistral._yes != mistral._no
    monkeypatch.setattr(other, "_no", mistral._no)
    assert other.is_yes("Judge.", "Is it?")  # between equals the careful answer


def test_a_vocabulary_without_yes_and_no_is_none(
    oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If both words began with one token, each answer would be yes."""
    monkeypatch.setattr(Mistral, "_first_token", lambda *_: 5)
    with pytest.raises(LanguageError, match="cannot tell yes from no"):
        Mistral(oracle, CPU)


def test_what_is_no_number_is_an_error(oracle: Any) -> None:
    """A model whose weights are damaged must not clear anything by chance."""
    broken = derive(oracle.text_encoder, {"lm_head": _broken_head})
    pipe = type("Pipe", (), {"text_encoder": broken, "tokenizer": oracle.tokenizer})
    mistral = Mistral(pipe, CPU)
    with pytest.raises(LanguageError, match="no numbers"):
        mistral.is_yes("Judge.", "Is it?")
    with pytest.raises(LanguageError, match="no numbers"):
        mistral.write("Say more.", "a boat", seed=0, temperature=1.0)


def _broken_head(head: nn.Linear) -> nn.Linear:
    broken = nn.Linear(head.in_features, head.out_features, bias=False)
    nn.init.constant_(broken.weight, float("nan"))
    return broken


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("model.language_model.norm", "the last norm is not loaded"),
        ("lm_head", "the LM head is not loaded"),
        ("model.vision_tower", "the vision tower is not loaded"),
    ],
)
def test_a_missing_part_is_named(oracle: Any, part: str, told: str) -> None:
    """Dropped by one that passes on what it gets, or never filled with weights."""
    without = derive(oracle.text_encoder, {part: lambda _: nn.Identity()})
    assert missing_parts(without) == [told]
    empty = derive(oracle.text_encoder, {part: lambda _: nn.Linear(1, 1, device="meta")})
    assert missing_parts(empty) == [told]
    assert missing_parts(oracle.text_encoder) == []


def test_an_encoder_that_only_reads_is_no_language_model(demo_model: Path) -> None:
    """With the layers dropped that no prompt needs there is none, and it is said why."""
    import diffusers

    pipe = diffusers.Flux2Pipeline.from_pretrained(demo_model, local_files_only=True)
    assert isinstance(load_mistral(demo_model, pipe, CPU, compiled=False)[0], Mistral)
    del pipe.text_encoder.model.language_model.layers[30:]
    pipe.text_encoder.lm_head = nn.Identity()
    none, why = load_mistral(demo_model, pipe, CPU, compiled=False)
    assert none is None
    assert why == (
        "the text encoder is not whole: 30 of 32 layers are loaded, the LM head is not loaded"
    )
    with pytest.raises(LanguageError, match="not whole"):
        Mistral(pipe, CPU)


def test_a_checkpoint_may_say_that_it_cannot_write(oracle: Any) -> None:
    """The demonstration checkpoint does; its encoder is not even looked at."""
    none, why = load_mistral(DEMO_CHECKPOINT, oracle, CPU, compiled=False)
    assert none is None
    assert why == "the checkpoint demo_checkpoint says that its text encoder cannot write"


def test_the_beginning_of_a_text_is_cut_by_tokens(mistral: Mistral) -> None:
    """Short texts stay whole, and of an endless one is left what the model would read of it."""
    text = "a red boat 灯 on the water " * 100_000
    cut = mistral.cut(text, 50)
    encode = mistral._processor.tokenizer.encode
    assert text.startswith(cut)
    assert abs(len(encode(cut, add_special_tokens=False)) - 50) <= 1
    assert mistral.cut("a boat", 50) == "a boat"


def test_a_compiled_step_writes_the_same(oracle: Any, write: Write) -> None:
    """One graph without a break serves all texts; nothing of one is left for the next."""
    graphs_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = Mistral(oracle, CPU, compiled=True, backend="eager")
    compiled.warm_up()
    for text in ("a boat", "a longer text about a goat on a boat", "a boat"):
        made = compiled.write("Say more.", text, seed=5, temperature=1.0, max_new_tokens=TOKENS)
        assert made == write(text)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs_before + 1


def test_tokens_are_drawn_by_their_probability() -> None:
    """Frequencies are what softmax says; what has no probability never comes."""
    random = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.1, 0.2, 0.0, 0.7], dtype=torch.float64).log()
    drawn = torch.tensor([draw(logits, 1.0, random) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert shares[2] == 0
    assert torch.allclose(shares, torch.tensor([0.1, 0.2, 0.0, 0.7]), atol=0.03)
    assert {draw(logits, 1e-9, random) for _ in range(100)} == {3}


def test_a_device_error_keeps_no_memory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran out of memory lets go of its tensors, so that the image can still be made."""
    kept: list[weakref.ref[torch.Tensor]] = []

    def fail(_self: Mistral, *_: object, **__: object) -> Any:
        held = torch.zeros(8)
        kept.append(weakref.ref(held))
        raise torch.OutOfMemoryError(f"no room for {held}")

    monkeypatch.setattr(Mistral, "_logits", fail)
    with pytest.raises(OutOfMemoryError) as caught:
        write()
    assert caught.value.__context__ is None
    assert kept[0]() is None
