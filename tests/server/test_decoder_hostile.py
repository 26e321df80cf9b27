"""Bombs, ballast and flipped bytes against a real decoder process.

The full-size version of the flips: FLUX2_TEST_FLIPS=2000.
"""

import os
import random
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from server.decoder import Decoder
from server.images import ImageRefusedError
from tests.server import icc
from tests.server.conftest import MakeSettings
from tests.server.corpus import ORIENTATION, SAMPLES
from tests.server.png_writer import SIGNATURE, chunk, header, make_bomb
from tests.server.scene import SCENE, largest_difference, save
from tests.server.test_decoder import is_scene, running

pytestmark = pytest.mark.anyio

LIMIT_PIXELS = 25_000_000
FLIPS = int(os.environ.get("FLUX2_TEST_FLIPS", "300"))
SEED = 20261121
MIB = 2**20


def peak_bytes(pid: int | None) -> int:
    """Return the most memory that a process ever had resident."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the process has no memory")


def samples() -> dict[str, bytes]:
    """Make one small picture of each format, with what metadata its kind can have."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    more: dict[str, object] = {
        "exif": exif.tobytes(),
        "icc_profile": icc.make_rgb_profile(icc.DISPLAY_P3, 2.2),
    }
    noisy = Image.blend(SCENE, Image.effect_noise(SCENE.size, 80).convert("RGB"), 0.3)
    clear = noisy.copy()
    clear.putalpha(200)
    return {
        "PNG": save(clear, "PNG", **more),
        "JPEG": save(noisy, "JPEG", progressive=True, **more),
        "WEBP": save(clear, "WEBP", save_all=True, append_images=[noisy], **more),
        "AVIF": save(clear, "AVIF", speed=9, **more),
        "HEIC": (SAMPLES / "display_p3.heic").read_bytes(),
    }


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "AVIF", "HEIC"])
async def test_flipped_bytes_are_a_picture_or_a_refusal(
    make_settings: MakeSettings, tmp_path: Path, file_format: str
) -> None:
    """Whatever byte of a file is wrong, nothing but the picture suffers."""
    chance = random.Random(f"{SEED}{file_format}")
    data = samples()[file_format]
    source, target = tmp_path / "source", tmp_path / "target.png"
    outcomes = {"picture": 0, "refused": 0, "replaced": 0}
    async with running(Decoder(make_settings())) as decoder:
        for _ in range(FLIPS):
            flipped = bytearray(data)
            flipped[chance.randrange(len(data))] ^= chance.randrange(1, 256)
            source.write_bytes(flipped)
            pid = decoder.pid
            try:
                await decoder.decode(source, target)
            except ImageRefusedError:
                outcomes["refused"] += 1
                assert not target.exists()
            else:
                outcomes["picture"] += 1
                with Image.open(target) as image:
                    assert (image.format, image.mode) == ("PNG", "RGB")
            outcomes["replaced"] += decoder.pid != pid
        source.write_bytes(save(SCENE, "PNG"))
        await decoder.decode(source, target)
        assert is_scene(target)
    print(file_format, outcomes)  # noqa: T201  (figures for who runs the full size)
    assert outcomes["refused"]


def make_large(file_format: str) -> bytes:
    """Make a picture of exactly the largest number of pixels, in as few bytes as can be."""
    if file_format == "HEIC":
        return (SAMPLES / "bomb.heic").read_bytes()
    plain = Image.new("RGB", (5000, 5000), (128, 128, 128))
    options: dict[str, dict[str, object]] = {
        "PNG": {"compress_level": 1},
        "JPEG": {"quality": 50, "progressive": True},
        "WEBP": {"lossless": True, "method": 0},
        "AVIF": {"speed": 10, "quality": 10},
    }
    return save(plain, file_format, **options[file_format])


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "AVIF", "HEIC"])
async def test_bombs_at_the_limit_and_one_above(
    make_settings: MakeSettings, tmp_path: Path, file_format: str
) -> None:
    """25 million pixels decode; with a limit of one less they are refused at next to no cost."""
    source, target = tmp_path / "source", tmp_path / "target.png"
    source.write_bytes(make_large(file_format))
    settings = make_settings(decode_seconds=60, reference_limit_pixels=LIMIT_PIXELS - 1)
    async with running(Decoder(settings)) as decoder:
        before = peak_bytes(decoder.pid)
        started = time.monotonic()
        with pytest.raises(ImageRefusedError) as caught:
            await decoder.decode(source, target)
        seconds, grown = time.monotonic() - started, peak_bytes(decoder.pid) - before
    print(f"{file_format}: refused in {seconds * 1000:.1f} ms, {grown / MIB:.1f} MiB")  # noqa: T201
    assert caught.value.error_type == "image_too_large"
    assert grown <= 10 * MIB
    assert seconds < 1  # 50 ms on a box that does nothing else
    settings = make_settings(decode_seconds=60, reference_limit_pixels=LIMIT_PIXELS)
    async with running(Decoder(settings)) as decoder:
        await decoder.decode(source, target)
    with Image.open(target) as image:
        assert image.size == (5000, 5000)


def claim_jpeg(width: int, height: int) -> bytes:
    """Make a JPEG whose frame header says another size."""
    data = save(SCENE, "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def claim_webp(width: int, height: int) -> bytes:
    """Make an animated WebP whose canvas says another size."""
    data = save(SCENE, "WEBP", save_all=True, append_images=[Image.new("RGB", SCENE.size)])
    at = data.index(b"VP8X") + 12
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return data[:at] + sides + data[at + 6 :]


def claim_boxes(data: bytes, true: tuple[int, int], size: tuple[int, int]) -> bytes:
    """Make an AVIF or HEIC whose properties say another size."""
    claimed = data.replace(struct.pack(">II", *true), struct.pack(">II", *size))
    assert claimed != data
    return claimed


def hide_in_webp() -> bytes:
    """Make a WebP whose canvas is small and whose picture is large."""
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (63).to_bytes(3, "little") * 2
    body = b"WEBP" + canvas + make_large("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "claim",
    [
        make_bomb,
        claim_jpeg,
        claim_webp,
        lambda *size: claim_boxes(save(SCENE, "AVIF"), SCENE.size, size),
        lambda *size: claim_boxes((SAMPLES / "plain.heic").read_bytes(), SCENE.size, size),
    ],
    ids=["PNG", "JPEG", "WEBP", "AVIF", "HEIC"],
)
@pytest.mark.parametrize("size", [(5001, 5000), (10_000, 5000), (16_000, 16_000)])
async def test_small_files_that_claim_much_cost_nothing(
    make_settings: MakeSettings,
    tmp_path: Path,
    claim: Callable[..., bytes],
    size: tuple[int, int],
) -> None:
    """What a header claims is judged before memory is taken for it."""
    source = tmp_path / "source"
    source.write_bytes(claim(*size))
    async with running(Decoder(make_settings())) as decoder:
        before = peak_bytes(decoder.pid)
        started = time.monotonic()
        with pytest.raises(ImageRefusedError) as caught:
            await decoder.decode(source, tmp_path / "target.png")
        seconds, grown = time.monotonic() - started, peak_bytes(decoder.pid) - before
    print(f"{seconds * 1000:.1f} ms, {grown / MIB:.1f} MiB, {caught.value.error_type}")  # noqa: T201
    assert caught.value.error_type == "image_too_large"
    assert grown <= 10 * MIB
    assert seconds < 1


@pytest.mark.parametrize("file_format", ["WEBP", "AVIF", "HEIC"])
async def test_large_pictures_behind_a_small_header_do_no_harm(
    make_settings: MakeSettings, tmp_path: Path, file_format: str
) -> None:
    """A header that claims less than there is gets a refusal or a small picture."""
    source, target = tmp_path / "source", tmp_path / "target.png"
    if file_format == "WEBP":
        source.write_bytes(hide_in_webp())
    else:
        source.write_bytes(claim_boxes(make_large(file_format), (5000, 5000), (64, 64)))
    async with running(Decoder(make_settings())) as decoder:
        before, pid = peak_bytes(decoder.pid), decoder.pid
        try:
            await decoder.decode(source, target)
        except ImageRefusedError as error:
            assert error.error_type == "image_load_error"  # noqa: PT017  (one of two good ends)
        else:
            with Image.open(target) as image:
                assert image.size == (64, 64)
        assert decoder.pid == pid
        assert peak_bytes(decoder.pid) - before <= 100 * MIB


async def test_ballast_is_not_read(make_settings: MakeSettings, tmp_path: Path) -> None:
    """A PNG of half a gigabyte, most of it a chunk nobody knows, decodes in little memory."""
    source, target = tmp_path / "source", tmp_path / "target.png"
    whole = save(SCENE, "PNG")
    length = 512 * MIB - len(whole) - 12
    with source.open("wb") as file:
        file.write(whole[:33] + struct.pack(">I4s", length, b"prVt"))
        file.seek(length + 4, os.SEEK_CUR)
        file.write(whole[33:])
    assert source.stat().st_size == 512 * MIB
    async with running(Decoder(make_settings())) as decoder:
        before = peak_bytes(decoder.pid)
        await decoder.decode(source, target)
        assert peak_bytes(decoder.pid) - before <= 10 * MIB
    assert is_scene(target)


async def test_a_progressive_bomb_runs_out_of_time(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """A JPEG of thousands of scans over a large picture ends with its time, not with ours."""
    source, target = tmp_path / "source", tmp_path / "target.png"
    data = save(Image.new("L", (5000, 5000)), "JPEG", progressive=True)
    last_scan = data.rindex(b"\xff\xda")
    source.write_bytes(data[:-2] + data[last_scan:-2] * 5000 + data[-2:])
    async with running(Decoder(make_settings(decode_seconds=2))) as decoder:
        pid = decoder.pid
        with pytest.raises(ImageRefusedError) as caught:
            await decoder.decode(source, target)
        assert caught.value.error_type == "image_load_error"
        source.write_bytes(save(SCENE, "PNG"))
        await decoder.decode(source, target)
        assert is_scene(target)
        assert decoder.pid != pid


async def test_pixels_beyond_the_picture_are_not_inflated(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """A PNG whose data would fill 256 MiB is decoded as far as its header goes."""
    source, target = tmp_path / "source", tmp_path / "target.png"
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(MIB)) for _ in range(256)) + packer.flush()
    picture = SIGNATURE + header(64, 64) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    source.write_bytes(picture)
    async with running(Decoder(make_settings())) as decoder:
        before = peak_bytes(decoder.pid)
        await decoder.decode(source, target)
        assert peak_bytes(decoder.pid) - before <= 10 * MIB
    with Image.open(target) as image:
        assert largest_difference(image, Image.new("RGB", (64, 64))) == 0
