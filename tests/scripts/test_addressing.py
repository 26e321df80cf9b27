"""How a transformer begins: with heads that look where they are, which training leaves alone."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch.nn.functional import silu

from scripts.train_demo_model.addressing import begin_addressed
from scripts.train_demo_model.cells import CELLS
from scripts.train_demo_model.conditions import Encoder, Pool, make_batch
from scripts.train_demo_model.recipe import RECIPES
from scripts.train_demo_model.text_encoder import sample_prompt
from scripts.train_demo_model.transformer import build_transformer, predict, train_flow

CPU = torch.device("cpu")

# Under autocast the norms of q and k get bfloat16 and keep their own float32.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


@pytest.fixture(scope="module")
def addressed(encoder: Encoder) -> Any:
    """Return a transformer as its training begins with it."""
    torch.manual_seed(0)
    transformer = build_transformer()
    begin_addressed(transformer, encoder)
    return transformer


def test_the_transformer_begins_by_telling_cells_apart(encoder: Encoder, addressed: Any) -> None:
    """What comes of a cell's token depends mostly on which cell it is, for any prompt."""
    torch.manual_seed(0)
    texts = encoder.encode_prompts([sample_prompt(random.Random(seed))[0] for seed in range(16)])
    cells = torch.stack([text[-CELLS * CELLS :] for text in texts])

    def share_of_place(transformer: Any) -> float:
        with torch.no_grad():
            heard = transformer.context_embedder(cells)
        return float(heard.mean(dim=0).var(dim=0).sum() / heard.square().mean(dim=(0, 1)).sum())

    assert share_of_place(addressed) > share_of_place(build_transformer()) + 0.1


def test_heads_that_look_around_find_cells_and_references(encoder: Encoder, addressed: Any) -> None:
    """One head attends to the cell that a token is in, another to the token's place everywhere."""
    torch.manual_seed(0)
    transformer = addressed
    batch = make_batch(
        Pool(encoder).draw(random.Random(5), 512, 512, 1, 1), encoder, 0, without_text=[False]
    )
    attention = transformer.transformer_blocks[0].attn
    seen: list[dict[str, torch.Tensor]] = []
    hook = attention.register_forward_pre_hook(
        lambda _module, _inputs, named: seen.append(named), with_kwargs=True
    )
    one = torch.ones(1)
    with torch.no_grad():
        predict(transformer, batch, torch.randn_like(batch.answer), one, one)
        hook.remove()
        named = seen[0]
        rows = batch.text.shape[1]
        keys = torch.cat(
            [
                attention.norm_added_k(
                    attention.add_k_proj(named["encoder_hidden_states"]).unflatten(-1, (-1, 64))
                ),
                attention.norm_k(attention.to_k(named["hidden_states"]).unflatten(-1, (-1, 64))),
            ],
            dim=1,
        )
        queries = attention.norm_q(attention.to_q(named["hidden_states"]).unflatten(-1, (-1, 64)))
        keys, queries = (
            apply_rotary_emb(tensor, part, sequence_dim=1)
            for tensor, part in (
                (keys, named["image_rotary_emb"]),
                (queries, tuple(wave[rows:] for wave in named["image_rotary_emb"])),
            )
        )
        weights = torch.einsum("qhc,khc->hqk", queries[0, :1024], keys[0]).div(8).softmax(dim=-1)
    token = torch.arange(1024)
    cell = token // 32 // 2 * CELLS + token % 32 // 2
    in_own_cell = weights[0, token, rows - CELLS * CELLS + cell]
    assert in_own_cell.min() > 0.5
    assert in_own_cell.mean() > 0.95
    itself, in_reference = (weights[1, token, rows + start + token] for start in (0, 1024))
    torch.testing.assert_close(itself, in_reference, rtol=0.05, atol=0.01)
    assert (itself + in_reference).mean() > 0.5


def test_levels_that_are_near_are_embedded_nearly_alike() -> None:
    """Modulation changes far less over a hundredth of the noise levels than over all of them."""
    torch.manual_seed(0)
    transformer = build_transformer()
    levels = torch.linspace(0, 1000, 101)
    with torch.no_grad():
        embedded = transformer.time_guidance_embed(levels, torch.full_like(levels, 2500.0))
        modulation = transformer.single_stream_modulation.linear(silu(embedded))
    assert modulation.diff(dim=0).std() < 0.2 * modulation.std(dim=0).mean()


def test_the_heads_see_the_same_at_any_noise(addressed: Any) -> None:
    """The double blocks shift by a constant, scale by nothing, and let attention through whole."""
    levels = torch.tensor([30.0, 300.0, 700.0, 990.0])
    guidance = torch.tensor([0.0, 1000.0, 2500.0, 7000.0])
    with torch.no_grad():
        embedded = silu(addressed.time_guidance_embed(levels, guidance))
        for modulation in (
            addressed.double_stream_modulation_img,
            addressed.double_stream_modulation_txt,
        ):
            shift, scale, gate, *_ = modulation.linear(embedded).chunk(6, dim=-1)
            assert shift.std(dim=0).max() < 0.1
            assert shift.abs().mean() > 0.3
            assert not scale.any()
            torch.testing.assert_close(gate, torch.ones_like(gate), atol=0.05, rtol=0)


def test_training_holds_where_the_heads_look(
    encoder: Encoder, addressed: Any, tmp_path: Path
) -> None:
    """Queries, keys and all that makes them stay as they were begun, while what is heard trains."""
    stage = RECIPES["try"].flow[0]
    trained = train_flow(tmp_path, copy.deepcopy(addressed), encoder, CPU, stage=stage)
    after = trained.state_dict()
    same = {name for name, before in addressed.state_dict().items() if after[name].equal(before)}
    heads = {f"transformer_blocks.0.attn.{part}.weight" for part in ("to_q", "to_k", "add_k_proj")}
    assert heads | {"x_embedder.weight", "context_embedder.weight"} <= same
    assert not same & {
        f"transformer_blocks.0.attn.{part}.weight" for part in ("to_v", "add_v_proj")
    }
    assert "transformer_blocks.1.attn.to_q.weight" not in same
