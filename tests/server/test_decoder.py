"""The decoder process: pictures come back, and nothing a picture does harms anything else."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

import server.decoder
from server.decoder import Decoder
from server.images import ImageRefusedError
from tests.server.conftest import MakeSettings
from tests.server.corpus import make_corpus
from tests.server.scene import SCENE, largest_difference, save

pytestmark = pytest.mark.anyio

GOOD = save(SCENE, "PNG")
FAULTY = "fault_decoder"
LIFE = 3
"""Orders that the faulty decoder follows before it retires."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a file that holds a good picture."""
    path = tmp_path / "source"
    path.write_bytes(GOOD)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return where the decoder shall write."""
    return tmp_path / "target.png"


@contextlib.asynccontextmanager
async def running(decoder: Decoder) -> AsyncIterator[Decoder]:
    """Start a decoder; afterwards stop it, and see to it that its last process is gone."""
    await decoder.start()
    try:
        yield decoder
    finally:
        pid = decoder.pid
        await decoder.stop()
        assert decoder.pid is None
        assert not (pid and Path(f"/proc/{pid}").exists())


def is_scene(target: Path) -> bool:
    """Say whether the good picture is there."""
    with Image.open(target) as image:
        return image.format == "PNG" and largest_difference(image, SCENE) == 0


async def test_every_odd_picture_comes_back_right(
    make_settings: MakeSettings, source: Path, target: Path
) -> None:
    """The whole corpus goes through one decoder process, which lives through it."""
    async with running(Decoder(make_settings())) as decoder:
        pid = decoder.pid
        for odd in make_corpus():
            source.write_bytes(odd.data)
            await decoder.decode(source, target)
            with Image.open(target) as image:
                assert largest_difference(image, odd.expected) <= odd.tolerance, odd.name
        assert decoder.pid == pid


async def test_refusals_keep_their_words(
    make_settings: MakeSettings, source: Path, target: Path
) -> None:
    """Type, message and context of a refusal cross the process boundary; no file is left."""
    source.write_bytes(save(Image.new("RGB", (63, 64)), "PNG"))
    async with running(Decoder(make_settings())) as decoder:
        with pytest.raises(ImageRefusedError, match="Minimum dimensions are 64x64") as caught:
            await decoder.decode(source, target)
    assert caught.value.error_type == "image_too_small"
    assert caught.value.ctx == {"min_height": 64, "min_width": 64}
    assert not target.exists()


@pytest.mark.parametrize(
    "fault", ["abort", "crash", "leave", "hang", "eat", "garbage", "flood", "wrong"]
)
async def test_a_picture_that_breaks_the_decoder_is_refused(
    make_settings: MakeSettings, source: Path, target: Path, fault: str
) -> None:
    """Death, silence and nonsense are the picture's 422; the next picture has a new process."""
    settings = make_settings(decode_seconds=1 if fault == "hang" else 30)
    async with running(Decoder(settings, FAULTY)) as decoder:
        pid = decoder.pid
        source.write_bytes(fault.encode())
        target.write_bytes(b"half a picture")
        with pytest.raises(ImageRefusedError) as caught:
            await decoder.decode(source, target)
        assert caught.value.error_type == "image_load_error"
        assert not target.exists()
        assert decoder.pid != pid
        assert not Path(f"/proc/{pid}").exists()
        source.write_bytes(GOOD)
        await decoder.decode(source, target)
        assert is_scene(target)


async def test_memory_is_limited(make_settings: MakeSettings, source: Path, target: Path) -> None:
    """A picture that needs more memory than there is, is refused, and the next one is decoded."""
    settings = make_settings(decode_memory_bytes=200 * 2**20)
    async with running(Decoder(settings)) as decoder:
        source.write_bytes(save(Image.new("RGBA", (5000, 5000)), "PNG", compress_level=1))
        with pytest.raises(ImageRefusedError) as caught:
            await decoder.decode(source, target)
        assert caught.value.error_type == "image_load_error"
        source.write_bytes(GOOD)
        await decoder.decode(source, target)
        assert is_scene(target)


async def test_a_death_between_pictures_is_nobodys_fault(
    make_settings: MakeSettings, source: Path, target: Path
) -> None:
    """A decoder that was killed while idle is replaced, and the picture decoded."""
    async with running(Decoder(make_settings())) as decoder:
        assert decoder.pid
        assert decoder._child
        os.kill(decoder.pid, signal.SIGKILL)
        await decoder._child.reader.read()
        await decoder.decode(source, target)
        assert is_scene(target)


async def test_a_decoder_retires_after_its_orders(
    make_settings: MakeSettings, source: Path, target: Path
) -> None:
    """What leaks does not add up: a new process takes over, unnoticed by the pictures."""
    async with running(Decoder(make_settings(), FAULTY)) as decoder:
        pids = []
        for _ in range(2 * LIFE):
            pids.append(decoder.pid)
            await decoder.decode(source, target)
            assert is_scene(target)
    assert len(set(pids)) == 2
    assert pids.index(pids[-1]) == LIFE


async def test_callers_take_turns(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Pictures asked for at once each arrive at their own target."""
    async with running(Decoder(make_settings())) as decoder:
        targets = []
        async with asyncio.TaskGroup() as group:
            for index in range(5):
                size = (64 + index, 64)
                one = tmp_path / f"source{index}"
                one.write_bytes(save(Image.new("RGB", size), "WEBP"))
                targets.append((tmp_path / f"target{index}.png", size))
                group.create_task(decoder.decode(one, targets[-1][0]))
    for path, size in targets:
        with Image.open(path) as image:
            assert image.size == size


async def test_a_caller_who_leaves_takes_the_decoder_along(
    make_settings: MakeSettings, source: Path, target: Path
) -> None:
    """After a cancel in mid-picture, the next answer is the next picture's."""
    async with running(Decoder(make_settings(), FAULTY)) as decoder:
        pid = decoder.pid
        source.write_bytes(b"hang")
        leaving = asyncio.create_task(decoder.decode(source, target))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(leaving, 0.2)
        assert not Path(f"/proc/{pid}").exists()
        source.write_bytes(GOOD)
        await decoder.decode(source, target)
        assert is_scene(target)


async def test_what_the_box_lacks_is_not_the_pictures_fault(
    make_settings: MakeSettings,
    source: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No process, no source and no room are OSErrors, which the worker tries again."""
    with pytest.raises(OSError, match="does not start"):
        await Decoder(make_settings(), "no_such_module").start()
    async with running(Decoder(make_settings())) as decoder:
        with pytest.raises(OSError, match="No such file"):
            await decoder.decode(source.parent / "missing", target)
        with pytest.raises(OSError, match="No such file"):
            await decoder.decode(source, source.parent / "missing" / "target.png")
        await decoder.stop()

        async def fail(*_arguments: object, **_options: object) -> None:
            raise BlockingIOError("no more processes")

        monkeypatch.setattr(server.decoder, "spawn", fail)
        with pytest.raises(BlockingIOError):
            await decoder.decode(source, target)
        monkeypatch.undo()
        await decoder.decode(source, target)
        assert is_scene(target)


async def test_a_decoder_that_cannot_be_replaced_at_once_is_replaced_later(
    make_settings: MakeSettings, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture that broke the last process is refused all the same."""

    async def fail(*_arguments: object, **_options: object) -> None:
        raise BlockingIOError("no more processes")

    async with running(Decoder(make_settings(), FAULTY)) as decoder:
        source.write_bytes(b"abort")
        with monkeypatch.context() as patch, pytest.raises(ImageRefusedError):
            patch.setattr(server.decoder, "spawn", fail)
            await decoder.decode(source, target)
        assert decoder.pid is None
        source.write_bytes(GOOD)
        await decoder.decode(source, target)
        assert is_scene(target)


async def test_the_process_has_little(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It knows no secrets, holds no file of ours, dumps no core and may not take much memory."""
    monkeypatch.setenv("FLUX2_API_KEYS", "secret")
    monkeypatch.setenv("OTHER_TOKEN", "secret")
    settings = make_settings(decode_memory_bytes=300 * 2**20)
    with (tmp_path / "held").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        async with running(Decoder(settings)) as decoder:
            process = Path(f"/proc/{decoder.pid}")
            assert b"secret" not in (process / "environ").read_bytes()
            opened = {str(link.readlink()) for link in (process / "fd").iterdir()}
            limits = (process / "limits").read_text()
    assert str(tmp_path / "held") not in opened
    assert len([name for name in opened if name.startswith("socket:")]) == 1
    lines = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert lines["Max address space"] == [str(300 * 2**20)] * 2
    assert lines["Max core file size"] == ["0", "0"]


KILLED = """
import asyncio, sys
from pathlib import Path
from server.decoder import Decoder
from server.settings import Settings

async def main():
    folder = Path(sys.argv[1])
    decoder = Decoder(Settings(data_dir=folder, model=folder, decode_seconds=60), "fault_decoder")
    await decoder.start()
    print(decoder.pid, flush=True)
    await decoder.decode(folder / "source", folder / "target")

asyncio.run(main())
"""


def test_the_process_dies_with_the_gateway(make_settings: MakeSettings, source: Path) -> None:
    """A gateway that is killed leaves no decoder behind, not even one that hangs."""
    make_settings()
    source.write_bytes(b"hang")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(source.parent)], stdout=subprocess.PIPE
    ) as gateway:
        assert gateway.stdout
        descriptor = os.pidfd_open(int(gateway.stdout.readline()))
        gateway.kill()
        ended, _, _ = select.select([descriptor], [], [], 30)
        os.close(descriptor)
    assert ended


def test_the_gateway_does_not_load_the_decoders() -> None:
    """What reads strangers' pictures is not even imported where the server answers."""
    code = "import sys, server.app; print('pi_heif' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
