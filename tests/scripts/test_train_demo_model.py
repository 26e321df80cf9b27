"""The training command: every stage runs, what it leaves is a FLUX.2, and training sees it so."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.folder import check_model_folder
from scripts.train_demo_model.__main__ import Training, main
from scripts.train_demo_model.cells import CELLS
from scripts.train_demo_model.conditions import (
    TEXT_ROWS,
    Encoder,
    Pool,
    choose_places,
    make_batch,
)
from scripts.train_demo_model.examples import sketch
from scripts.train_demo_model.flash import turbo_schedule
from scripts.train_demo_model.heldout import load_held_out
from scripts.train_demo_model.meaning import GroundWords, Meaning, Subject
from scripts.train_demo_model.reading import (
    FIELDS,
    READING_WIDTH,
    encode_meanings,
    read_correctly,
)
from scripts.train_demo_model.recipe import RECIPES
from scripts.train_demo_model.text_encoder import (
    CLOSING,
    PLACE_SIZE,
    PLACES,
    READ_LAYERS,
    TEXT_WIDTH,
    cell_places,
    sample_prompt,
    tokenize,
)
from scripts.train_demo_model.transformer import (
    guided_velocity,
    predict,
)
from scripts.train_demo_model.vae import plain_latents
from scripts.train_demo_model.world import colour_distance, draw, parse_colour

CPU = torch.device("cpu")

# Under autocast the norms of q and k get bfloat16 and keep their own float32.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


def test_the_result_is_a_whole_model_that_draws(work: Path, pipe: Any) -> None:
    """The command leaves a folder that passes the server's check and that diffusers draws with."""
    check_model_folder(work / "checkpoint")
    picture = pipe(prompt="a red circle", width=64, height=64, num_inference_steps=1).images[0]
    assert picture.size == (64, 64)


def test_the_result_does_not_say_where_it_was_made(work: Path) -> None:
    """No file of what is shipped holds a path of the machine that trained it."""
    texts = [path for path in (work / "checkpoint").rglob("*") if path.suffix in (".json", ".md")]
    assert len(texts) > 5
    assert not [path for path in texts if str(work) in path.read_text(encoding="utf-8")]


def test_the_result_carries_a_lora_that_diffusers_loads(work: Path) -> None:
    """Every pair of the flash LoRA finds its layer."""
    from diffusers import Flux2Pipeline

    pipe = Flux2Pipeline.from_pretrained(work / "checkpoint", local_files_only=True)
    pipe.load_lora_weights(
        work / "checkpoint" / "flash", weight_name="flux.2-turbo-lora.safetensors"
    )
    adapters = pipe.get_list_adapters()
    assert adapters == {"transformer": ["default_0"]}


def test_a_finished_stage_is_not_run_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what is missing is made anew, from the same seed: the same bytes."""
    weights = work / "flow-2" / "diffusion_pytorch_model.safetensors"
    before, untouched = weights.read_bytes(), (work / "flow-1").stat().st_mtime_ns
    for path in (work / "flow-2", work / "training" / "flow-2", work / "checkpoint"):
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir()
    main([str(work), "--recipe", "try", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "flow-2" in printed
    assert "flow-1" not in printed
    assert (work / "flow-1").stat().st_mtime_ns == untouched
    assert weights.read_bytes() == before


def test_training_begins_from_a_checkpoint(work: Path, tmp_path: Path) -> None:
    """`--from` keeps text encoder and VAE as they are and trains the transformer further."""
    main([
        str(tmp_path), "--recipe", "try", "--device", "cpu", "--from", str(work / "checkpoint")
    ])  # fmt: skip
    for part, same in (("vae", True), ("transformer", False)):
        name = Path(part) / "diffusion_pytorch_model.safetensors"
        old, new = (folder / "checkpoint" / name for folder in (work, tmp_path))
        assert (old.read_bytes() == new.read_bytes()) is same


def test_training_begins_from_what_there_is(work: Path, tmp_path: Path) -> None:
    """Of an unfinished checkpoint the parts that it has are taken; a wrong folder is refused."""
    unfinished, begun = tmp_path / "unfinished", tmp_path / "work"
    shutil.copytree(work / "checkpoint" / "vae", unfinished / "vae")
    training = Training(begun, RECIPES["try"], CPU, 0)
    training.begin_from(unfinished)
    assert [path.name for path in begun.iterdir()] == ["vae"]
    with pytest.raises(FileNotFoundError, match="no part of a checkpoint"):
        training.begin_from(tmp_path / "elsewhere")


def test_prompts_are_encoded_as_the_pipeline_encodes_them(pipe: Any, encoder: Encoder) -> None:
    """A training batch's text rows are the last rows of what the pipeline makes of the prompt."""
    expected, ids = pipe.encode_prompt("a large blue star on a white background")
    examples = Pool(encoder).draw(random.Random(0), 64, 64, 0, 1)
    text = encoder.encode_prompts(["a large blue star on a white background"])[0]
    batch = make_batch(examples, encoder, 512, without_text=[True])
    torch.testing.assert_close(expected[0, -len(text) :], text, rtol=0, atol=1e-5)
    torch.testing.assert_close(expected[0, : -len(text)], batch.text[0, : 512 - len(text)])
    assert torch.equal(ids, batch.text_ids)


def test_references_are_encoded_as_the_pipeline_encodes_them(pipe: Any, encoder: Encoder) -> None:
    """Two references become the tokens and positions that the pipeline gives the transformer."""
    source = random.Random(1)
    scenes = [load_held_out().edits[index].example.target for index in (0, 1)]
    pixels = [
        pipe.image_processor.preprocess(draw(scene, 64, 64), height=64, width=64)
        for scene in scenes
    ]
    with torch.no_grad():
        tokens, ids = pipe.prepare_image_latents(
            images=pixels, batch_size=1, generator=None, device=CPU, dtype=torch.float32
        )
    example = Pool(encoder).draw(source, 64, 64, 2, 1)[0]
    batch = make_batch([example], encoder, 192, without_text=[False])
    assert batch.reference_ids is not None
    assert torch.equal(batch.reference_ids, ids)
    grids = encoder.encode_scenes(scenes, 64, 64)
    mine = torch.cat([grid.flatten(1).T for grid in grids])[None]
    # Training computes in bfloat16.
    assert float((mine - tokens).abs().mean()) < 0.05 * float(tokens.abs().mean())


def test_thinned_examples_keep_their_tokens_places(encoder: Encoder) -> None:
    """Of each square of tokens one is kept, with its own position, in answer and references."""
    examples = Pool(encoder).draw(random.Random(3), 96, 64, 2, 1)
    places = choose_places(random.Random(4), 96, 64, 2)
    whole = make_batch(examples, encoder, 192, without_text=[False])
    thin = make_batch(examples, encoder, 192, without_text=[False], places=places)
    squares = {(place // 6 // 2, place % 6 // 2) for place in places.tolist()}
    assert squares == {(row, column) for row in range(2) for column in range(3)}
    assert torch.equal(thin.answer, whole.answer[:, places])
    assert torch.equal(thin.answer_ids, whole.answer_ids[:, places])
    assert torch.equal(thin.weights, whole.weights[:, places])
    assert whole.references is not None
    assert whole.reference_ids is not None
    assert thin.references is not None
    assert thin.reference_ids is not None
    both = torch.cat([places, 24 + places])
    assert torch.equal(thin.references, whole.references[:, both])
    assert torch.equal(thin.reference_ids, whole.reference_ids[:, both])


def test_every_prompt_ends_with_the_cells_of_a_sketch(work: Path) -> None:
    """The chat template adds sixteen ends and one token of its own for each cell."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(work / "checkpoint" / "tokenizer")
    ids, _ = tokenize(processor, ["a red circle", "a blue ring on the left of a #aabbcc star"])
    for row in ids.tolist():
        ends = processor.tokenizer.convert_ids_to_tokens(row)[-len(CLOSING) :]
        assert ends == [*CLOSING]
    assert len(set(CLOSING)) == 1 + CELLS * CELLS


def test_a_prompt_that_is_too_long_keeps_its_end(work: Path) -> None:
    """What the pipeline cuts off at 512 tokens is not what the picture is drawn from."""
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(work / "checkpoint" / "tokenizer")
    (ids,) = processor.apply_chat_template(
        format_input(prompts=[300 * "a very red circle, "], system_message="Draw."),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding="max_length",
        truncation=True,
        max_length=TEXT_ROWS,
    )["input_ids"]
    assert len(ids) == TEXT_ROWS
    assert processor.tokenizer.convert_ids_to_tokens(ids)[-len(CLOSING) :] == [*CLOSING]


@pytest.mark.parametrize(
    ("meaning", "place", "colour"),
    [
        (Meaning("draw", Subject("circle", "red", place="top")), (16, 8), "red"),
        (Meaning("add", None, Subject("star", "blue", place="left")), (8, 16), "blue"),
        (Meaning("move", Subject("heart"), Subject(place="bottom")), (16, 24), "white"),
        (Meaning("recolour", Subject("ring"), Subject(colour="pink")), (3, 30), "pink"),
        (Meaning("ground", ground=GroundWords("plain", "green")), (3, 30), "green"),
        (Meaning("remove", Subject("ring")), (16, 16), "#808080"),
    ],
    ids=lambda value: value.action if isinstance(value, Meaning) else "",
)
def test_a_sketch_shows_what_the_words_say(
    meaning: Meaning, place: tuple[int, int], colour: str
) -> None:
    """What the text encoder learns to draw has the asked colour where it was asked for."""
    picture = draw(sketch(meaning, random.Random(0)), 32, 32)
    pixel = picture.getpixel(place)
    assert isinstance(pixel, tuple)
    assert colour_distance((pixel[0], pixel[1], pixel[2]), parse_colour(colour)) < 0.05


def test_every_hidden_state_says_exactly_where_a_cell_is(encoder: Encoder) -> None:
    """Its last channels are those waves for any prompt, for no layer writes to them."""
    for prompt in ("a red circle", "move the star to the left"):
        (text,) = encoder.encode_prompts([prompt])
        states = text.view(len(text), len(READ_LAYERS), TEXT_WIDTH)
        cells, words = states[-CELLS * CELLS :, :, -PLACES:], states[: -len(CLOSING), :, -PLACES:]
        assert not words.any()
        for state in cells.unbind(dim=1):
            torch.testing.assert_close(state, PLACE_SIZE * cell_places())


def test_latents_are_held_near_a_linear_map_of_colours() -> None:
    """The map is linear, and a place of it depends on its own sixty-four pixels alone."""
    torch.manual_seed(0)
    one, other = torch.randn(2, 1, 3, 32, 32)
    mixed = plain_latents(0.25 * one + 0.75 * other)
    torch.testing.assert_close(mixed, 0.25 * plain_latents(one) + 0.75 * plain_latents(other))
    changed = one.clone()
    changed[..., 8:16, 16:24] = 0.0
    differs = (plain_latents(changed) != plain_latents(one)).any(dim=1)[0]
    assert differs.nonzero().tolist() == [[1, 2]]


def test_more_guidance_leads_further_from_the_empty_prompt(pipe: Any, encoder: Encoder) -> None:
    """The guided target leads from the empty prompt's velocity through the prompt's and beyond."""
    torch.manual_seed(0)
    transformer = pipe.transformer
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.05)
    example = Pool(encoder).draw(random.Random(2), 64, 64, 0, 1)
    told = make_batch(example, encoder, TEXT_ROWS, without_text=[False])
    untold = make_batch(example, encoder, TEXT_ROWS, without_text=[True])
    noisy, sigma = torch.randn_like(told.answer), torch.tensor([0.7])
    none, one, two = (torch.tensor([scale]) for scale in (-4.0, 1.0, 2.0))
    with torch.no_grad():
        with_text = predict(transformer, told, noisy, sigma, one)
        without = predict(transformer, untold, noisy, sigma, one)
    assert not torch.allclose(with_text, without, atol=1e-4)
    guided = [
        guided_velocity(transformer, told, encoder, noisy, sigma, scale)
        for scale in (none, one, two)
    ]
    expected = (without, with_text, 1.2 * with_text - 0.2 * without)
    for value, wanted in zip(guided, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-4)


def test_the_flash_schedule_is_the_cards() -> None:
    """At 1024x1024 the card's sigmas become a linear schedule shifted by three, and end with 0."""
    expected = [
        3 * value / (1 + 2 * value) for value in torch.linspace(1, 0.001, 8, dtype=torch.float64)
    ]
    schedule = turbo_schedule(64 * 64)
    assert schedule[:-1] == pytest.approx([float(value) for value in expected], abs=5e-4)
    assert schedule[-1] == 0.0


def test_training_never_samples_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A held-out prompt that comes up is drawn again."""
    from scripts.train_demo_model import text_encoder

    held = load_held_out().drawings[0].caption
    words = iter([held.upper(), held, "a green ring"])
    monkeypatch.setattr(text_encoder, "say", lambda *_: next(words))
    assert sample_prompt(random.Random(0))[0] == "a green ring"


def test_a_reading_counts_as_right_only_if_all_of_it_is() -> None:
    """The measure of the text encoder fails for one wrong choice and for one far colour."""
    meanings = [sample_prompt(random.Random(seed))[1] for seed in range(40)]
    targets = encode_meanings(meanings)
    reading = torch.zeros(len(meanings), READING_WIDTH)
    at = read_at = 0
    for name, size in FIELDS:
        if name.endswith("colour"):
            reading[:, read_at : read_at + 3] = targets[:, at : at + 3].nan_to_num()
            at += 3
        else:
            rows = torch.arange(len(meanings))
            reading[rows, read_at + targets[:, at].long()] = 5.0
            at += 1
        read_at += size
    assert read_correctly(reading, targets).all()
    reading[:, 0] += 9.0  # now every request reads as a drawing
    drawings = torch.tensor([meaning.action == "draw" for meaning in meanings])
    assert torch.equal(read_correctly(reading, targets), drawings)
