"""Making the images of a receipt again, in this process, and comparing decoded pixels."""

import hashlib
import importlib
import io
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat

from pipelines.pictures import size_of
from pipelines.types import (
    GenerationRequest,
    LoadOptions,
    LoraUse,
    Model,
    OnLoadProgress,
    Pipeline,
    ignore_load_progress,
)
from server.catalogue import find_endpoint
from server.errors import ConfigurationError, FalError
from server.family.endpoint import Order
from server.image_urls import IMAGE_FIELD
from server.images import ImageRefusedError, encode
from server.provenance.markers import Marking
from server.receipts.hashes import FileHashes
from server.receipts.record import open_image, pixels_sha256, read_build

IDENTICAL_DECIBELS = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One image made again. `decibels` is the PSNR to the stored file, None without one."""

    index: int
    identical: bool
    note: str
    decibels: float | None = None


def load(factory: str, options: LoadOptions) -> Pipeline:
    """Load the pipeline as a runner does, by import path."""
    module_name, _, function_name = factory.partition(":")
    make: Callable[[LoadOptions, OnLoadProgress], tuple[Pipeline, str]] = getattr(
        importlib.import_module(module_name), function_name
    )
    return make(options, ignore_load_progress)[0]


def order_of(receipt: Mapping[str, Any]) -> Order:
    """Return what was asked for, with the seed that was drawn and the prompt that was used.

    Raises `ConfigurationError` for a receipt whose request this version does not understand.
    """
    body = dict(receipt["input"])
    if receipt["references"]:
        body[IMAGE_FIELD] = [digest or "" for digest in receipt["references"]]
    try:
        order = find_endpoint(receipt["endpoint_id"]).parse(body)
    except FalError as error:
        raise ConfigurationError(f"this version cannot make it again: {error}") from error
    order = replace(order, seed=receipt["seed"])
    if receipt["prompt"] is None:
        return order
    settings = replace(order.settings, expand_prompt=False)
    return replace(order, prompt=receipt["prompt"], settings=settings)


def model_of(receipt: Mapping[str, Any]) -> Model:
    """Return which model made the images.

    Raises `ConfigurationError` for a receipt whose endpoint this version does not know.
    """
    try:
        return find_endpoint(receipt["endpoint_id"]).model
    except FalError as error:
        raise ConfigurationError(f"this version cannot make it again: {error}") from error


def match_references(digests: Sequence[str | None], offered: Sequence[bytes]) -> list[bytes]:
    """Return the reference images in their order, each found by its hash.

    One whose hash was not recorded is the next offered one that nothing else matches. Raises
    `ConfigurationError` for one that is not offered.
    """
    by_digest = {hashlib.sha256(data).hexdigest(): data for data in offered}
    spare = [data for digest, data in by_digest.items() if digest not in digests]
    found = []
    for index, digest in enumerate(digests):
        if digest in by_digest:
            found.append(by_digest[digest])
        elif digest is None and spare:
            found.append(spare.pop(0))
        else:
            raise ConfigurationError(
                f"reference image {index + 1} (sha256 {digest or 'not recorded'}) is not stored "
                "here any more: give it as --reference FILE"
            )
    return found


def replay(
    receipt: Mapping[str, Any],
    pipeline: Pipeline,
    references: Sequence[bytes],
    limit_pixels: int,
    stored: Callable[[Mapping[str, Any]], bytes | None],
    loras: tuple[LoraUse, ...] = (),
) -> Iterator[Replayed]:
    """Make each image of the receipt again and compare it. `stored` finds its file, if it can."""
    order = order_of(receipt)
    order = replace(order, settings=replace(order.settings, loras=loras))
    # The marker is beside the pixels; the watermark is in them.
    watermark = receipt["applied"].get("watermark") == "on"
    marking = Marking(marker=False, watermark=watermark)
    with tempfile.TemporaryDirectory() as folder:
        paths = _write(references, Path(folder), limit_pixels)
        if order.needs_size:
            order = order.fit_to(*size_of(paths[0]))
        request = GenerationRequest(
            request_id=receipt["request_id"],
            prompt=order.prompt,
            seed=order.seed,
            num_images=order.num_images,
            settings=order.settings,
            reference_images=paths,
        )
        made = pipeline.generate(request, lambda _: None, lambda: False)
        for told, generated in zip(receipt["images"], made, strict=True):
            again = open_image(encode(generated.image, order.output_format, marking).data)
            yield _compare(told, again, stored(told))


def differences(
    receipt: Mapping[str, Any], data_dir: Path, build: str | None, hashes: FileHashes
) -> list[str]:
    """Say in what this process differs from the one that made the images."""
    then, now = receipt["build"], read_build(data_dir, build, hashes)
    if then is None or now is None:
        return ["it was not written down what the images came from"]
    lines = []
    for name in sorted(then["files"].keys() | now["files"].keys()):
        before, after = (side["files"].get(name) for side in (then, now))
        if before is None or before != after:
            lines.append(f"{name}: {before or 'unknown'} then, {after or 'unknown'} now")
    for name in sorted(then["versions"].keys() | now["versions"].keys()):
        before, after = (side["versions"].get(name) for side in (then, now))
        if before != after:
            lines.append(f"{name}: version {before} then, {after} now")
    lines += [
        f"{name}: {then.get(name)} then, {now.get(name)} now"
        for name in ("device", "dtype", "compile", "attention", "flash_schedule", "lora")
        if then.get(name) != now.get(name)
    ]
    return lines or ["nothing that was written down differs"]


def decibels(first: Image.Image, second: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two pictures of one size."""
    squares = ImageStat.Stat(ImageChops.difference(first, second)).sum2
    total = sum(squares)
    if not total:
        return IDENTICAL_DECIBELS
    return 10 * math.log10(255**2 * first.width * first.height * len(squares) / total)


def _compare(told: Mapping[str, Any], again: Image.Image, data: bytes | None) -> Replayed:
    index, digest = told["index"], told["pixels_sha256"]
    if told["flagged"]:
        return Replayed(index=index, identical=False, note="it was withheld by the safety check")
    if digest is None:
        return Replayed(index=index, identical=False, note="the receipt has no hash of its pixels")
    if pixels_sha256(again) == digest:
        return Replayed(index=index, identical=True, note="identical")
    before = open_image(data).convert("RGB") if data is not None else None
    if before is None or pixels_sha256(before) != digest or before.size != again.size:
        return Replayed(index=index, identical=False, note="differs; its file is not here")
    value = decibels(before, again.convert("RGB"))
    return Replayed(
        index=index, identical=False, note=f"differs: PSNR {value:.1f} dB", decibels=value
    )


def _write(references: Sequence[bytes], folder: Path, limit_pixels: int) -> tuple[Path, ...]:
    """Decode the references as the server's decoder does."""
    from server.references import decode  # noqa: PLC0415  (its decoders are large)

    paths = []
    for index, data in enumerate(references):
        path = folder / f"{index}.png"
        try:
            decode(io.BytesIO(data), limit_pixels).save(path, "PNG")
        except ImageRefusedError as error:
            raise ConfigurationError(f"reference image {index + 1}: {error}") from error
        paths.append(path)
    return tuple(paths)
