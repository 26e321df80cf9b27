"""A pipeline from a whole model folder: planned for the device, read straight to it, compiled.

The transformer's weights are read by threads of their own, while transformers loads the text
encoder. Neither is ever whole in more than one place. All that diffusers loads is there before:
while it makes a model, every parameter that any thread gives to any module goes to "meta"
(accelerate's `init_empty_weights` replaces `nn.Module.register_parameter`).
"""

import contextlib
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from pipelines.compat import declare_torchvision_operators

# Before diffusers is imported.
declare_torchvision_operators()

import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from pipelines.assembly import (  # noqa: E402
    NO_FLASH,
    equip,
    find_flash_lora,
    is_compiled,
    keep_compiled_kernels,
)
from pipelines.build import build_id, describe_build, keep_build  # noqa: E402
from pipelines.declaration import read_declaration  # noqa: E402
from pipelines.errors import DoesNotFitError, LanguageError, ModelNotFoundError  # noqa: E402
from pipelines.flux2 import Flux2  # noqa: E402
from pipelines.folder import Kind, list_weight_files, read_kind  # noqa: E402
from pipelines.language import NO_LANGUAGE, make_language  # noqa: E402
from pipelines.lora import attach  # noqa: E402
from pipelines.lora_file import Lora  # noqa: E402
from pipelines.memory import choose_plan  # noqa: E402
from pipelines.model_size import read_model_size  # noqa: E402
from pipelines.plan import USUAL_REQUEST, Plan  # noqa: E402
from pipelines.prequantised import check_set, read_set  # noqa: E402
from pipelines.probe import probe_card  # noqa: E402
from pipelines.recipes import Recipe, recipe_of  # noqa: E402
from pipelines.streaming import Slots  # noqa: E402
from pipelines.text_encoder import load_text_encoder  # noqa: E402
from pipelines.trees import TreeBuilder, Trees  # noqa: E402
from pipelines.types import LoadOptions, OnLoadProgress, Precision  # noqa: E402
from pipelines.weights import check_whole, read_tensors  # noqa: E402

log = structlog.get_logger(__name__)


def construct(options: LoadOptions, on_progress: OnLoadProgress) -> tuple[Flux2, str]:
    """Make the pipeline, and describe it in a few words.

    Raises `ModelNotFoundError` for a device that is not there and for weights that are not those
    of the configuration, `DoesNotFitError` for a model that has no room, `LanguageError` for one
    that cannot judge prompts where there are criteria for them.
    """
    kind = read_kind(options.model)
    options = _fit_options(options, kind)
    device = torch.device(_choose_device(options.device, has_cuda=torch.cuda.is_available()))
    exact = Precision(_choose_dtype(options.dtype, device.type))
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
        # What a model before this one had, as in `replay`, is to count as free.
        gc.collect()
        torch.cuda.empty_cache()
    if options.compile_cache:
        keep_compiled_kernels(options.compile_cache)
    _silence_libraries()
    model = make_transformer(options.model)
    flash = find_flash_lora(model, options) if kind.has_flash else NO_FLASH
    plan = plan_memory(options, exact, has_flash=flash.lora is not None)
    slots = Slots(device)
    recipe = recipe_of(kind)
    dtype = getattr(torch, plan.exact_precision)
    pipe = _load_small_parts(options.model, recipe, device, dtype)
    with ThreadPoolExecutor(1, thread_name_prefix="transformer") as beside:
        reading = beside.submit(
            _read_trees,
            model,
            options,
            device,
            plan,
            flash.lora,
            partial(on_progress, "transformer"),
        )
        on_progress("text_encoder", 0.0)
        text_encoder = load_text_encoder(options.model, device, dtype, plan, slots, recipe)
        on_progress("text_encoder", 1.0)
        trees = reading.result()
    transformer = next(tree for tree in trees if tree is not None)
    pipe.register_modules(transformer=transformer, text_encoder=text_encoder)
    compiled = is_compiled(options, device)
    pipeline = Flux2(
        pipe,
        device,
        equip(trees, device, options, plan, flash, slots),
        cache_bytes=options.cache_bytes,
        plan=plan,
        slots=slots,
        language=make_language(options, pipe, device, plan, compiled=compiled)
        if kind.can_write
        else NO_LANGUAGE,
        build=_note_build(options, device, exact),
    )
    if device.type == "cuda" and compiled:
        pipeline.compile_decoder()
    on_progress("warm_up", 0.0)
    pipeline.warm_up()
    on_progress("warm_up", 1.0)
    return pipeline, f"{options.model.name} on {device} in {exact}, profile {plan.profile}"


def _fit_options(options: LoadOptions, kind: Kind) -> LoadOptions:
    """Leave out what this kind of model has no use for: another model is served by the same words.

    Raises `LanguageError` where that would leave prompts unjudged.
    """
    if not kind.can_write:
        if options.prompt_criteria:
            raise LanguageError(
                f"there are criteria for prompts, but {options.model.name} is {kind.description}, "
                "whose text encoder cannot judge by them"
            )
        options = replace(options, text_encoder="prompts")
    return options if kind.has_flash else replace(options, flash_lora=None)


def _silence_libraries() -> None:
    """Keep the log to our own lines."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    # At every prompt transformers 5 warns of the way in which diffusers 0.42 calls its processor.
    transformers.logging.set_verbosity_error()


def make_transformer(model: Path) -> Any:
    """Make the transformer of a model folder on "meta": shapes without memory."""
    config = diffusers.Flux2Transformer2DModel.load_config(
        str(model / "transformer"), local_files_only=True
    )
    with torch.device("meta"):
        return diffusers.Flux2Transformer2DModel.from_config(config).eval()


def plan_memory(options: LoadOptions, exact: Precision, *, has_flash: bool) -> Plan:
    """Choose the plan, and with it how much of the text encoder is loaded.

    All of it where the operator wants that, or needs it for criteria; by default where that takes
    neither another profile nor the room for a usual request. Raises `DoesNotFitError`, and
    `ModelNotFoundError` for a declaration of the checkpoint that cannot be read.
    """
    size = read_model_size(options.model, options.flash_lora)
    choose = partial(
        choose_plan,
        probe_card(options.device),
        size,
        has_flash=has_flash,
        exact_precision=exact,
    )
    if options.text_encoder == "whole" or options.prompt_criteria:
        plan = choose(options.profile, whole_text_encoder=True)
    else:
        plan = choose(options.profile)
        if options.text_encoder == "auto" and read_declaration(options.model).expander:
            with contextlib.suppress(DoesNotFitError):
                whole = choose(plan.profile, whole_text_encoder=True)
                plan = whole if whole.fits(USUAL_REQUEST) else plan
    log.info(
        "memory plan",
        profile=plan.profile,
        asked=options.profile,
        exact=plan.exact_precision.value if plan.exact else None,
        fast=plan.fast.value if plan.fast else None,
        flash=plan.flash,
        text_encoder=plan.text_encoder,
        whole_text_encoder=plan.whole_text_encoder,
        blocks=plan.blocks,
        weights_bytes=plan.weights_bytes,
        host_bytes=plan.host_bytes,
        free_bytes=plan.free_bytes,
        largest_tokens=plan.largest_tokens,
    )
    return plan


def _read_trees(
    model: Any,
    options: LoadOptions,
    device: torch.device,
    plan: Plan,
    lora: Lora | None,
    on_fraction: Callable[[float], None],
) -> Trees:
    # Not by diffusers' own `to`, which warns of modules that this model does not have.
    torch.nn.Module.to(model, getattr(torch, plan.exact_precision))
    quantised = _find_set(options, plan)
    if quantised:
        fast = read_set(model, quantised, device, plan, on_fraction)
        return None, fast, attach(fast, lora, device) if lora and plan.flash else None
    builder = TreeBuilder(model, device, plan, lora)
    read_tensors(list_weight_files(options.model, "transformer"), device, builder.take, on_fraction)
    trees = builder.finish()
    for tree in trees:
        if tree is not None:
            check_whole(tree)
    return trees


def _find_set(options: LoadOptions, plan: Plan) -> Path | None:
    """Find the set that is all the plan needs of the transformer, if there is one."""
    if plan.exact or plan.fast is None or plan.flash == "fused":
        return None
    try:
        folder = check_set(options.model, plan.fast, plan.exact_precision)
    except ModelNotFoundError as error:
        log.info("quantising at load", reason=str(error))
        return None
    log.info("quantised weights", folder=str(folder))
    return folder


def _load_small_parts(model: Path, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a pipeline of diffusers' without transformer and text encoder, the VAE to the device."""
    vae = diffusers.AutoencoderKLFlux2.from_pretrained(
        str(model / "vae"), dtype=dtype, local_files_only=True, use_safetensors=True
    )
    pipe = recipe.pipeline.from_pretrained(
        str(model),
        transformer=None,
        text_encoder=None,
        vae=vae.to(device).eval(),
        local_files_only=True,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _note_build(options: LoadOptions, device: torch.device, exact: Precision) -> str:
    """Keep a note of all that images come from; return its name.

    Of a device its kind counts: one kind of card gives the same picture, another may not.
    """
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    build = describe_build(options, kind, exact.value)
    return keep_build(build, options.builds) if options.builds else build_id(build)


def _choose_device(asked: str, *, has_cuda: bool) -> str:
    if asked == "auto":
        return "cuda" if has_cuda else "cpu"
    if asked.startswith("cuda") and not has_cuda:
        raise ModelNotFoundError(f"device {asked} was asked for, but torch finds no CUDA device")
    return asked


def _choose_dtype(asked: str, device_type: str) -> str:
    if asked != "auto":
        return asked
    return "bfloat16" if device_type == "cuda" else "float32"
