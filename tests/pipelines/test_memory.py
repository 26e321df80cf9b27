"""What fits on which card, and how it is laid out there. No card is needed for this."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import DoesNotFitError
from pipelines.memory import (
    FAST_FROM,
    HOST_RESERVE_BYTES,
    Card,
    choose_plan,
    explain,
    fastest_of,
)
from pipelines.model_size import ModelSize, read_model_size
from pipelines.plan import (
    LARGEST_REQUEST,
    PROFILE_NAMES,
    PROFILES,
    SMALLEST_REQUEST,
    TEXT_TOKENS,
    USUAL_REQUEST,
    Plan,
)
from pipelines.quantisation import LAYERS
from pipelines.types import Precision

GB = 10**9
MIB = 1024**2
CONTEXT_BYTES = 700_000_000  # what a CUDA context takes before anything else

REAL = ModelSize(
    block_linears=31_406_948_352,
    block_rows=4_030_464,
    largest_block=981_467_136,
    transformer_others=816_332_800,
    flash_linears=25_971_130_368,
    flash_rows=3_342_336,
    flash_others=740_818_944,
    text_layer=555_755_520,
    text_layers=40,
    prompt_layers=30,
    text_embedding=671_088_640,
    text_rest=438_963_200,
    lm_head=671_088_640,
    vae=84_046_115,
    width=6144,
    vae_width=256,
    lora_bytes=2_760_814_872,
)
"""FLUX.2 [dev]; `test_model_size` holds that this is what its configurations say."""

FP8, INT8 = Precision.FP8, Precision.INT8

# What nvidia-smi tells of cards of these sizes.
CARDS_MIB = {24: 24564, 32: 32607, 48: 46068, 80: 81559, 96: 97887, 141: 143771, 180: 183359}
CAPABILITIES = {FP8: (8, 9), INT8: (8, 0), None: (7, 5)}


def make_card(size_gb: int, fast: Precision | None = FP8, host_gb: int = 256) -> Card:
    """Describe an empty card in a box with so much free main memory."""
    total_bytes = CARDS_MIB[size_gb] * MIB
    return Card(
        name=f"a card of {size_gb} GB",
        kind="cuda",
        capability=CAPABILITIES[fast],
        total_bytes=total_bytes,
        free_bytes=total_bytes - CONTEXT_BYTES,
        host_free_bytes=host_gb * GB,
    )


def make_cpu(host_gb: int) -> Card:
    """Describe a box without a card."""
    return Card(
        name="cpu",
        kind="cpu",
        capability=None,
        total_bytes=host_gb * GB,
        free_bytes=host_gb * GB,
        host_free_bytes=host_gb * GB,
    )


# Card, 8 bits, main memory -> profile, exact, flash, text encoder, blocks, GB of weights, GB
# streamed.
RESIDENT, STREAMED = "resident", "streamed"
PLANS = [
    (180, FP8, 256, ("141gb", True, "fused", RESIDENT, RESIDENT, 158.2, 0.0)),
    (141, FP8, 256, ("141gb", True, "attached", RESIDENT, RESIDENT, 133.5, 0.0)),
    (141, INT8, 256, ("141gb", True, "attached", RESIDENT, RESIDENT, 133.5, 0.0)),
    (141, None, 256, ("80gb", True, "attached", RESIDENT, RESIDENT, 102.1, 0.0)),
    (96, FP8, 256, ("80gb", False, "attached", RESIDENT, RESIDENT, 70.7, 0.0)),
    (96, INT8, 256, ("80gb", False, "attached", RESIDENT, RESIDENT, 70.7, 0.0)),
    (96, None, 256, ("48gb", True, "attached", STREAMED, RESIDENT, 67.4, 34.7)),
    (80, FP8, 256, ("80gb", False, "attached", RESIDENT, RESIDENT, 70.7, 0.0)),
    (80, INT8, 256, ("80gb", False, "attached", RESIDENT, RESIDENT, 70.7, 0.0)),
    (80, None, 256, ("48gb", True, "attached", STREAMED, RESIDENT, 67.4, 34.7)),
    (48, FP8, 256, ("48gb", False, "attached", STREAMED, RESIDENT, 36.0, 34.7)),
    (48, INT8, 256, ("48gb", False, "attached", STREAMED, RESIDENT, 36.0, 34.7)),
    (48, None, 256, ("24gb", True, "attached", STREAMED, STREAMED, 4.6, 97.5)),
    (32, FP8, 256, ("32gb", True, "attached", STREAMED, STREAMED, 4.6, 128.9)),
    (32, FP8, 96, ("24gb", False, "attached", STREAMED, STREAMED, 4.6, 66.1)),
    (32, None, 256, ("24gb", True, "attached", STREAMED, STREAMED, 4.6, 97.5)),
    (24, FP8, 256, ("32gb", True, "attached", STREAMED, STREAMED, 4.6, 128.9)),
    (24, FP8, 96, ("24gb", False, "attached", STREAMED, STREAMED, 4.6, 66.1)),
    (24, INT8, 96, ("24gb", False, "attached", STREAMED, STREAMED, 4.6, 66.1)),
    (24, None, 128, ("24gb", True, "attached", STREAMED, STREAMED, 4.6, 97.5)),
]


@pytest.mark.parametrize(("size_gb", "fast", "host_gb", "expected"), PLANS)
def test_auto_chooses_the_best_plan_that_fits(
    size_gb: int, fast: Precision | None, host_gb: int, expected: tuple[object, ...]
) -> None:
    """The whole plan of every kind of card, with fp8, with int8 and without either."""
    plan = choose_plan(make_card(size_gb, fast, host_gb), REAL)

    assert (
        plan.profile,
        plan.exact,
        plan.flash,
        plan.text_encoder,
        plan.blocks,
        round(plan.weights_bytes / GB, 1),
        round(plan.host_bytes / GB, 1),
    ) == expected
    assert plan.fast == fast
    assert plan.exact_precision is Precision.BFLOAT16
    assert plan.fits(USUAL_REQUEST)


@pytest.mark.parametrize("size_gb", [24, 32, 96, 141, 180])
def test_the_largest_request_fits_on_most_cards_with_fp8(size_gb: int) -> None:
    """Four references of 1 MP and a picture of 4 MP: the most that fal's endpoints take."""
    assert choose_plan(make_card(size_gb), REAL).fits(LARGEST_REQUEST)


@pytest.mark.parametrize("size_gb", [48, 80])
def test_elsewhere_either_half_of_it_fits(size_gb: int) -> None:
    """48 and 80 GB make a picture of 4 MP, or one of 1 MP with four references."""
    plan = choose_plan(make_card(size_gb), REAL)

    assert not plan.fits(LARGEST_REQUEST)
    assert plan.fits((16384, 0))
    assert plan.fits((4096, 4 * 4096))


def test_the_cpu_keeps_all_in_main_memory() -> None:
    """In float32 by default, in bfloat16 if asked; refused where main memory is too small."""
    plan = choose_plan(make_cpu(512), REAL)
    assert (plan.profile, plan.exact, plan.fast, plan.flash) == ("cpu", True, None, "fused")
    assert plan.exact_precision is Precision.FLOAT32
    assert round(plan.weights_bytes / GB) == 305

    smaller = choose_plan(make_cpu(128), REAL, exact_precision=Precision.BFLOAT16)
    assert (smaller.flash, round(smaller.weights_bytes / GB)) == ("attached", 102)

    with pytest.raises(DoesNotFitError, match="profile cpu on cpu: .* 210.0 GB on the device"):
        choose_plan(make_cpu(128), REAL)


def test_without_the_lora_nothing_is_kept_for_it() -> None:
    """Neither if its file is missing nor if flash is not wanted."""
    card = make_card(80)
    without = choose_plan(card, dataclasses.replace(REAL, lora_bytes=0))

    assert without.flash is None
    assert without == choose_plan(card, REAL, has_flash=False)
    with_it = choose_plan(card, REAL)
    assert with_it.weights_bytes - without.weights_bytes == REAL.lora_bytes


def test_the_whole_text_encoder_takes_its_place() -> None:
    """Ten layers more, the LM head and the vision tower: 13.3 GB."""
    card = make_card(180)
    whole = choose_plan(card, REAL, "80gb", whole_text_encoder=True)

    assert whole.whole_text_encoder
    more_bytes = whole.weights_bytes - choose_plan(card, REAL, "80gb").weights_bytes
    assert round(more_bytes / GB, 1) == 13.3


def test_a_little_room_is_used_for_pictures_without_references() -> None:
    """Where nothing has room for a reference, `auto` takes what makes a picture at all."""
    smallest = choose_plan(make_card(24, host_gb=96), REAL)
    free_bytes = smallest.peak_bytes(*SMALLEST_REQUEST)
    card = dataclasses.replace(make_card(24, host_gb=96), free_bytes=free_bytes)

    plan = choose_plan(card, REAL)
    assert plan.profile == "24gb"
    assert plan.fits(SMALLEST_REQUEST)
    assert not plan.fits(USUAL_REQUEST)

    with pytest.raises(DoesNotFitError, match="profile 24gb on a card of 24 GB: .* GB are missing"):
        choose_plan(dataclasses.replace(card, free_bytes=free_bytes - 1), REAL)


@pytest.mark.parametrize("profile", [profile.name for profile in PROFILES if profile.name != "cpu"])
def test_a_named_profile_is_taken_at_its_word(profile: str) -> None:
    """On a card where better would fit, too."""
    assert choose_plan(make_card(180), REAL, profile).profile == profile


def test_a_named_profile_that_does_not_fit_says_why() -> None:
    """How much it needs, how much there is and what is missing, on the card or beside it."""
    with pytest.raises(
        DoesNotFitError,
        match=(
            "profile 80gb on a card of 48 GB: a picture of 1024x1024 needs 73.9 GB on the "
            "device, 47.6 GB are free, 26.3 GB are missing"
        ),
    ):
        choose_plan(make_card(48), REAL, "80gb")
    with pytest.raises(
        DoesNotFitError, match="needs 42.7 GB of main memory, 32.0 GB are free, 10.7 GB"
    ):
        choose_plan(make_card(48, host_gb=32), REAL, "48gb")
    with pytest.raises(DoesNotFitError, match="made for another kind of device than cuda"):
        choose_plan(make_card(48), REAL, "cpu")
    with pytest.raises(DoesNotFitError, match="made for another kind of device than cpu"):
        choose_plan(make_cpu(512), REAL, "80gb")


def test_a_profile_that_there_is_not_is_a_mistake() -> None:
    """It names those that there are."""
    with pytest.raises(ValueError, match="no profile '12gb', only auto, 141gb, 96gb"):
        choose_plan(make_card(48), REAL, "12gb")


def test_every_profile_is_explained() -> None:
    """In the order of the table, each with its numbers."""
    card = make_card(48, host_gb=96)
    verdicts = explain(card, REAL)

    assert tuple(verdict.profile for verdict in verdicts) == PROFILE_NAMES[1:]
    assert [verdict.profile for verdict in verdicts if verdict.fits] == ["48gb", "24gb"]
    by_name = {verdict.profile: verdict for verdict in verdicts}
    assert by_name["80gb"].needed_bytes > by_name["80gb"].free_bytes == card.free_bytes
    streams = by_name["32gb"]
    assert streams.host_needed_bytes > streams.host_free_bytes == card.host_free_bytes
    assert "of main memory" in streams.why
    assert "34.7 GB are streamed from main memory" in by_name["48gb"].why
    assert by_name["cpu"].plan is None


def test_peaks_of_the_real_model() -> None:
    """The numbers behind the plans, for one card: text, steps and VAE follow each other."""
    plan = choose_plan(make_card(48), REAL)

    assert plan.activation_bytes(4608) == 36 * 6144 * 2 * 4608
    around = plan.weights_bytes + 500_000_000
    assert plan.peak_bytes(4096, 4096) - around == plan.activation_bytes(4096 + 4096 + TEXT_TOKENS)
    assert plan.peak_bytes(16384) - around == 5 * 256 * 2 * 2048**2
    assert plan.peak_bytes(16) - around == plan.encode_bytes == 2 * 2 * REAL.text_layer


requests = st.tuples(st.integers(16, 20000), st.integers(0, 40000))
cards = st.builds(
    Card,
    name=st.just("some card"),
    kind=st.just("cuda"),
    capability=st.sampled_from([(7, 5), (8, 0), (8, 9), (12, 0)]),
    total_bytes=st.just(300 * GB),
    free_bytes=st.integers(0, 300 * GB),
    host_free_bytes=st.integers(0, 300 * GB),
)


def plan_or_none(card: Card) -> Plan | None:
    """Return what `auto` makes of a card, None if nothing fits."""
    try:
        return choose_plan(card, REAL)
    except DoesNotFitError:
        return None


@given(card=cards)
def test_auto_never_takes_more_than_there_is(card: Card) -> None:
    """Neither of the card nor of main memory; and it fails only if no profile fits."""
    plan = plan_or_none(card)

    assert (plan is not None) == any(verdict.fits for verdict in explain(card, REAL))
    if plan:
        assert plan.peak_bytes(*SMALLEST_REQUEST) <= card.free_bytes
        assert plan.host_bytes + HOST_RESERVE_BYTES * bool(plan.host_bytes) <= card.host_free_bytes
        assert plan.exact or plan.fast
        assert plan.fits((plan.largest_tokens, 0))
        assert not plan.fits((plan.largest_tokens + 1, 0))


@given(card=cards, request=requests, more=requests)
def test_peaks_grow_with_the_picture_and_its_references(
    card: Card, request: tuple[int, int], more: tuple[int, int]
) -> None:
    """Never does a larger request take less, and what fits leaves all smaller ones fit."""
    plan = plan_or_none(card)
    if plan:
        larger = (request[0] + more[0], request[1] + more[1])
        assert plan.peak_bytes(*request) <= plan.peak_bytes(*larger)


def test_large_pictures_and_many_references_take_more() -> None:
    """Strictly, where the steps are what takes most."""
    plan = choose_plan(make_card(141), REAL)
    peaks = [plan.peak_bytes(4096, count * 4096) for count in range(5)]

    assert peaks == sorted(set(peaks))
    assert plan.peak_bytes(4096) < plan.peak_bytes(6144) < plan.peak_bytes(16384)


def test_precisions_are_those_of_the_layers() -> None:
    """What a plan may ask for is what blocks can be quantised to."""
    assert set(FAST_FROM) == set(LAYERS)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        (None, None),  # a CPU
        ((7, 5), None),  # T4
        ((8, 0), Precision.INT8),  # A100
        ((8, 6), Precision.INT8),  # A40
        ((8, 9), Precision.FP8),  # L40S
        ((9, 0), Precision.FP8),  # H100
        ((10, 0), Precision.FP8),  # B200
        ((12, 0), Precision.FP8),  # RTX 5090
    ],
)
def test_the_choice_by_capability(
    capability: tuple[int, int] | None, expected: Precision | None
) -> None:
    """Each card gets the best that its tensor cores multiply, and older ones nothing."""
    assert fastest_of(capability) == expected


def test_small_models_are_laid_out_in_the_best_way(demo_model: Path) -> None:
    """On any card: the profiles are named for the real model, not for the card."""
    plan = choose_plan(make_card(24), read_model_size(demo_model))

    assert (plan.profile, plan.exact, plan.fast, plan.flash) == ("141gb", True, FP8, "fused")


def test_planning_needs_no_torch() -> None:
    """It is asked before torch is there, and by tools that have none."""
    code = "import sys, pipelines.memory; print({'torch', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
