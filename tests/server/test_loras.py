"""From what a caller calls a LoRA to a file for the runner; errors to the exact list index."""

import errno
import json
import pickle
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipelines.types import LoraUse
from server.catalogue import CATALOGUE
from server.errors import InputError, RequestError
from server.image_urls import need_of
from server.jobs import Job, Need
from server.settings import Settings
from tests.server.conftest import MakeSettings
from tests.server.test_inputs import FAR, ORIGIN, Bench

pytestmark = pytest.mark.anyio

ENDPOINT = "fal-ai/flux-2/lora"
GALLERY = "fal-ai/flux-2-lora-gallery/realism"
KEY = "transformer_blocks.0.attn.to_q.lora_A.weight"


def make_lora(key: str = KEY, value: int = 0) -> bytes:
    """Return a safetensors file of one tensor."""
    header = {key: {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes([value] * 4)


class LoraBench(Bench):
    """The prepare step, with a folder of the operator's LoRAs."""

    @property
    def folder(self) -> Path:
        """Where the operator's LoRAs lie."""
        assert self.settings.lora_dir
        return self.settings.lora_dir

    def put(self, name: str, data: bytes | None = None) -> Path:
        """Put a file into the operator's folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_lora() if data is None else data)
        return path

    async def ask(
        self, *paths: str, endpoint_id: str = ENDPOINT, owner: str = "local", **fields: Any
    ) -> Job:
        """Store a request with these LoRAs."""
        loras = [{"path": path, "scale": index + 1} for index, path in enumerate(paths)]
        return await self.store.insert(
            Job(
                request_id=f"r{len(self.store.backlog)}",
                endpoint_id=endpoint_id,
                owner=owner,
                origin=ORIGIN,
                input=json.dumps({"prompt": "x", "loras": loras, **fields}),
                created_at=1.0,
            )
        )

    async def find(self, *paths: str, owner: str = "local") -> list[bytes]:
        """Find these LoRAs; return what is in the files."""
        uses = await self.inputs.find_loras(await self.ask(*paths, owner=owner))
        assert [use.scale for use in uses] == [index + 1 for index in range(len(paths))]
        return [use.path.read_bytes() for use in uses]

    async def refused(self, *paths: str, owner: str = "local") -> dict[str, Any]:
        """Ask for what must be refused; return the one mistake."""
        job = await self.ask(*paths, owner=owner)
        with pytest.raises(InputError) as caught:
            await self.inputs.find_loras(job)
        (item,) = caught.value.body["detail"]
        assert not (self.spool / job.request_id).exists()
        return dict(item)


@pytest.fixture
async def bench(make_settings: MakeSettings, tmp_path: Path) -> AsyncIterator[LoraBench]:
    """Return a prepare step over fresh folders."""
    (tmp_path / "loras").mkdir()
    bench = LoraBench(make_settings(lora_dir=str(tmp_path / "loras")))
    await bench.store.open()
    yield bench
    await bench.store.close()


async def test_every_way_of_naming_a_lora_leads_to_its_bytes(bench: LoraBench) -> None:
    """A name, a file of this server and a URL, in order, with their scales."""
    bench.put("style.safetensors", make_lora(value=1))
    name = await bench.keep(make_lora(value=2))
    bench.web.files[f"{FAR}/a"] = make_lora(value=3)
    found = await bench.find("style", f"{ORIGIN}/files/{name}", f"{FAR}/a")
    assert found == [make_lora(value=value) for value in (1, 2, 3)]
    assert bench.web.asked == [f"{FAR}/a"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("style.safetensors", "style.safetensors"),
        ("owner/style.safetensors", "owner/style"),
        ("owner/flux.2-Style_v1/pytorch_lora_weights.safetensors", "owner/flux.2-Style_v1"),
        ("owner/repo/one.safetensors", "owner/repo/one.safetensors"),
    ],
)
async def test_names_of_the_operators_files(bench: LoraBench, file: str, name: str) -> None:
    """As files, and as Hugging Face's repositories mirrored there; nothing is fetched."""
    path = bench.put(file)
    uses = await bench.inputs.find_loras(await bench.ask(name))
    assert uses == (LoraUse(path, 1),)
    assert bench.web.asked == []


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "../secret.safetensors",
        "a/../../secret",
        "/etc/passwd",
        "owner//style",
        "owner/.hidden",
        ".hidden",
        "a/b/c/d",
        "",
        "~/style",
        "owner/two",
        "owner/unknown",
        "file:///etc/passwd",
        "data:application/octet-stream;base64,AAAA",
        "C:\\style",
        "style\n",
        "st\0yle",
        "*",
        "own?r/style",
        "x" * 5000,
    ],
)
async def test_what_is_no_name_of_a_lora_is_refused(bench: LoraBench, name: str) -> None:
    """No way leads out of the folder, and two files in a folder are not one."""
    bench.put("style.safetensors")
    bench.put("owner/style.safetensors")
    bench.put("owner/two/one.safetensors")
    bench.put("owner/two/two.safetensors")
    bench.put(".hidden.safetensors")
    bench.put("owner/.hidden.safetensors")
    bench.put("../secret.safetensors")
    item = await bench.refused("style", name)
    assert item["type"] == "file_download_error"
    assert item["loc"] == ["body", "loras", 1, "path"]
    assert item["msg"].startswith("LoRA not found")
    assert str(bench.folder) not in item["msg"]
    assert bench.web.asked == []


async def test_without_a_folder_names_are_refused_and_urls_are_not(
    make_settings: MakeSettings,
) -> None:
    """The message names the setting."""
    bench = LoraBench(make_settings())
    await bench.store.open()
    assert "FLUX2_LORA_DIR" in (await bench.refused("style"))["msg"]
    bench.web.files[f"{FAR}/a"] = make_lora()
    assert await bench.find(f"{FAR}/a") == [make_lora()]
    await bench.store.close()


async def test_a_folder_that_cannot_be_looked_into_has_no_loras(
    bench: LoraBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sick disk, or another's folder, callers hear as of a name that is none; the log why."""

    def fail(_path: Path) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    bench.put("lost/x.safetensors")
    monkeypatch.setattr(Path, "is_file", fail)
    with capture_logs() as logs:
        item = await bench.refused("lost/x")
    assert item["type"] == "file_download_error"
    assert item["msg"].startswith("LoRA not found")
    assert [(line["log_level"], line["reason"]) for line in logs] == [
        ("warning", "Input/output error")
    ]


async def test_a_file_of_another_is_not_found(bench: LoraBench) -> None:
    """Whoever may not read a file may not put it on either, and is told as of one that is not."""
    acl = json.dumps({"default": "forbid", "rules": []})
    name = await bench.keep(make_lora(), owner="ann", acl=acl)
    url = f"{ORIGIN}/files/{name}"
    assert await bench.find(url, owner="ann") == [make_lora()]
    item = await bench.refused(url, owner="bob")
    missing = await bench.refused(f"{ORIGIN}/files/{'0' * 32}.bin", owner="bob")
    assert (item["type"], item["msg"]) == (missing["type"], missing["msg"])
    assert item["msg"] == "File not found on this server"


BAD: dict[str, tuple[bytes, str]] = {
    "a pickle": (pickle.dumps([1]), "a pickle"),
    "a checkpoint": (b"PK\x03\x04" + bytes(100), "a pickle"),
    "a page": (b"<html>not found</html>", "not a safetensors file"),
    "cut short": (make_lora()[:-1], "cut short"),
    "a DoRA": (make_lora("transformer_blocks.0.attn.to_q.dora_scale"), "DoRA"),
    "a model": (make_lora("double_blocks.0.img_attn.qkv.weight"), "not a name of a LoRA"),
    "half a character": (make_lora("\ud800.lora_A.weight"), "not a safetensors file"),
    "a long key": (make_lora("k" * 10_000), "k" * 100),
}


@pytest.mark.parametrize("way", ["name", "file", "url"])
@pytest.mark.parametrize("case", BAD)
async def test_what_is_no_lora_is_refused_by_its_content(
    bench: LoraBench, case: str, way: str
) -> None:
    """Whatever it is called and wherever it comes from, before a runner hears of it."""
    data, told = BAD[case]
    if way == "name":
        bench.put("bad.safetensors", data)
        path = "bad"
    elif way == "file":
        path = f"{ORIGIN}/files/{await bench.keep(data)}"
    else:
        path = f"{FAR}/bad.safetensors"
        bench.web.files[path] = data
    item = await bench.refused(path)
    assert item["type"] == "lora_load_error"
    assert item["loc"] == ["body", "loras", 0, "path"]
    assert item["input"] == path
    assert told in item["msg"]
    assert len(item["msg"]) < 400


async def test_a_lora_beyond_the_limit_is_refused(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """The limit is the operator's own, for files that are here, too."""
    bench = LoraBench(make_settings(lora_dir=str(tmp_path), lora_limit_bytes="100"))
    await bench.store.open()
    bench.put("large.safetensors")
    assert "larger than 100 bytes" in (await bench.refused("large"))["msg"]
    await bench.store.close()


async def test_a_file_that_is_deleted_while_it_is_used_is_still_there(bench: LoraBench) -> None:
    """A request has a name of its own for it until it is over."""
    name = await bench.keep(make_lora())
    job = await bench.ask(f"{ORIGIN}/files/{name}")
    (use,) = await bench.inputs.find_loras(job)
    bench.files.delete(name)
    assert use.path.read_bytes() == make_lora()
    await bench.inputs.release(job.request_id)
    assert not use.path.exists()


async def test_the_gallery_s_own_lora_is_no_mistake_of_the_caller(bench: LoraBench) -> None:
    """It is put on by `lora_scale`; where it cannot be used the server says so of itself."""
    path = bench.put("flux-2-lora-gallery/realism.safetensors")
    job = await bench.ask(endpoint_id=GALLERY, lora_scale=1.5)
    assert await bench.inputs.find_loras(job) == (LoraUse(path, 1.5),)
    path.write_bytes(b"bad")
    with pytest.raises(RequestError) as caught:
        await bench.inputs.find_loras(job)
    assert caught.value.status == 503
    assert "flux-2-lora-gallery/realism" in caught.value.body["detail"]


@pytest.mark.parametrize(
    ("endpoint_id", "body", "need"),
    [
        (ENDPOINT, {}, Need.NOTHING),
        (ENDPOINT, {"loras": []}, Need.NOTHING),
        (ENDPOINT, {"loras": [{"path": "style"}]}, Need.DECODING),
        (ENDPOINT, {"loras": [{"path": f"{ORIGIN}/files/{'0' * 32}.bin"}]}, Need.DECODING),
        (ENDPOINT, {"loras": [{"path": "style"}, {"path": f"{FAR}/a"}]}, Need.FETCHING_LORAS),
        (ENDPOINT, {"loras": ["x", {"path": 3}, {}, None]}, Need.NOTHING),
        (ENDPOINT, {"loras": {"path": f"{FAR}/a"}}, Need.NOTHING),
        ("fal-ai/flux-2/lora/edit", {"loras": [{"path": f"{FAR}/a"}]}, Need.FETCHING_LORAS),
        ("fal-ai/flux-2/lora/edit", {"image_urls": [f"{FAR}/a"]}, Need.FETCHING),
        ("fal-ai/flux-2", {"loras": [{"path": f"{FAR}/a"}]}, Need.NOTHING),
        (GALLERY, {}, Need.DECODING),
    ],
)
def test_what_a_request_with_loras_waits_for(
    endpoint_id: str, body: dict[str, Any], need: Need, settings: Settings
) -> None:
    """Those from elsewhere are kept apart from those that are here, and from what needs none."""
    names = [settings.host, "box.example"]
    assert need_of(CATALOGUE[endpoint_id], body, ORIGIN, names) is need
