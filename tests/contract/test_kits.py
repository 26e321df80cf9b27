"""Unmodified programs reach the server by fal's own host names: through the proxy, and mapped."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningServer
from tests.contract.conftest import (
    MIB,
    SCRIPTS,
    SMALL_INPUTS,
    WAIT_SECONDS,
    make_picture,
    pad_png,
    proxy_recipe,
    skip_or_fail,
)

ENDPOINT = "fal-ai/flux-2/flash"
QUICK = "fal-ai/flux-2"
JS = Path(__file__).parent / "js"
KEY = "mapped:0123456789abcdef"
BROWSER = "chromium"
FOREIGN = "https://example.com/"
WAYS = (["unshare", "--mount", "--net"], ["unshare", "--map-root-user", "--mount", "--net"])

SEED_EXAMPLE = """
import fal_client

def on_queue_update(update):
    if isinstance(update, fal_client.InProgress):
        for log in update.logs:
           print(log["message"])

result = fal_client.subscribe(
    "fal-ai/flux-2/flash/edit",
    arguments={
        "prompt": "Remove the meat from the hamburger",
        "image_urls": ["https://storage.googleapis.com/falserverless/example_outputs/flux-2-flash-edit-input.png"]
    },
    with_logs=True,
    on_queue_update=on_queue_update,
)
print(result)
"""
"""Letter for letter from fal's page of the endpoint."""


def python(script: str, *arguments: Any) -> list[str]:
    """Return the words that run a script of `python/`; what is no path is passed as JSON."""
    words = [str(item) if isinstance(item, Path) else json.dumps(item) for item in arguments]
    return [sys.executable, "-P", str(SCRIPTS / script), *words]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a picture to upload.

    Beside it lies `big.png`, the same picture in so many bytes that clients upload it in parts.
    """
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    path.write_bytes(make_picture())
    pad_png(make_picture(), path.with_name("big.png"), 101 * MIB)
    return path


def run_by_proxy(server: RunningServer, program: list[str]) -> Any:
    """Run a program in the environment that `client-env --mode proxy` prints."""
    done = subprocess.run(
        ["bash", "-c", f'{proxy_recipe(server)}\nexec "$@"', "bash", *program],
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_SECONDS,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def mapped(
    demo_model: Path, picture: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Run all programs where fal's names are mapped to a server; return how each ended."""
    folder = tmp_path_factory.mktemp("mapped")
    programs = {
        "client": python("through_kit.py", ENDPOINT, SMALL_INPUTS[ENDPOINT], FOREIGN),
        "seed": [sys.executable, "-P", "-c", SEED_EXAMPLE],
        "uploads": python("upload_and_edit.py", picture, folder),
    }
    if (JS / "node_modules" / "@fal-ai" / "client").is_dir() and shutil.which("node"):
        asked = [QUICK, json.dumps(SMALL_INPUTS[QUICK])]
        programs |= {
            "node": ["node", str(JS / "mapped.mjs"), ENDPOINT, json.dumps(SMALL_INPUTS[ENDPOINT])],
            "serverless": ["node", str(JS / "serverless.mjs"), *asked],
            "proxied": ["node", str(JS / "proxied.mjs"), *asked, shutil.which(BROWSER) or ""],
        }
    return run_mapped(folder, demo_model, programs, FLUX2_API_KEY=KEY)


def run_mapped(
    folder: Path, model: Path, programs: dict[str, list[str]], **settings: str
) -> dict[str, Any]:
    """Run programs where fal's names are mapped to a server; return how each ended."""
    way = next((way for way in WAYS if shutil.which("unshare") and succeeds([*way, "true"])), None)
    if way is None:
        skip_or_fail("no mount and network namespaces can be made here (unshare --mount --net)")
    done = subprocess.run(
        [*way, *python("mapped.py", folder, model, programs, settings)],
        env={key: value for key, value in os.environ.items() if not key.startswith("FLUX2_")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_SECONDS * 2,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def succeeds(words: list[str]) -> bool:
    """Run a program and say whether it ended well."""
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def output_of(ended: dict[str, Any]) -> str:
    """Return what a program printed, which must have ended well."""
    assert ended["code"] == 0, ended["err"]
    out: str = ended["out"]
    return out


def check_client(told: Any) -> None:
    """Check that image and file came by fal's own names, without a port."""
    (image,) = told["result"]["images"]
    assert told["result"]["seed"] == 5
    for url in (image["url"], told["again"]):
        assert url.startswith("https://v3b.fal.media/files/")
    assert told["queue_url"].startswith("https://queue.fal.run/fal-ai/flux-2/requests/")
    assert told["file"]["status"] == 200
    assert told["file"]["content_type"] == image["content_type"]
    assert told["file"]["bytes"] == image["file_size"] > 1000


def check_uploads(told: Any) -> None:
    """Check that each upload became the picture that the edit used, and no other."""
    for url in told["urls"].values():
        assert url.startswith("https://v3b.fal.media/files/")
    assert told["stored"]["upload"] == told["stored"]["upload_file"] == told["sent"]
    assert told["text"] == "just words"
    made = told["made"]
    for way in ("upload", "upload_file", "upload_image", "upload_file in parts"):
        assert made[way] == made["data"], way
    assert made["none"] != made["data"]


def test_python_client_through_the_proxy(server: RunningServer) -> None:
    """With nothing but the printed recipe it gets its image, and the file; others are refused."""
    told = run_by_proxy(server, python("through_kit.py", ENDPOINT, SMALL_INPUTS[ENDPOINT], FOREIGN))
    check_client(told)
    assert told["foreign"] == "ProxyError: 403 Forbidden"


def test_uploads_through_the_proxy(server: RunningServer, picture: Path, tmp_path: Path) -> None:
    """All of the client's uploads end as the reference image of an edit."""
    check_uploads(run_by_proxy(server, python("upload_and_edit.py", picture, tmp_path)))


def test_python_client_with_mapped_names(mapped: dict[str, Any]) -> None:
    """A hosts file and the authority are all it takes; nothing else changes for other hosts."""
    told = json.loads(output_of(mapped["client"]))
    check_client(told)
    assert told["foreign"].startswith("ConnectError")


def test_uploads_with_mapped_names(mapped: dict[str, Any]) -> None:
    """The same, by the names that the client has built in."""
    check_uploads(json.loads(output_of(mapped["uploads"])))


def test_example_of_fal_s_page_runs_letter_for_letter(mapped: dict[str, Any]) -> None:
    """Its picture is fetched from the host that it names, which here is another local server."""
    result = ast.literal_eval(output_of(mapped["seed"]).splitlines()[-1])
    assert result["prompt"] == "Remove the meat from the hamburger"
    assert result["images"][0]["url"].startswith("https://v3b.fal.media/files/")


def test_javascript_client_with_mapped_names(mapped: dict[str, Any]) -> None:
    """The client as it comes, without the proxy URL that the other recipe gives it."""
    told = script_output(mapped, "node")
    (image,) = told["data"]["images"]
    assert image["url"].startswith("https://v3b.fal.media/files/")
    assert (told["status"], told["bytes"]) == (200, image["file_size"])


def script_output(mapped: dict[str, Any], name: str) -> Any:
    """Return what a script of Node printed; skip where there is no Node, or not the packages."""
    if name not in mapped:
        skip_or_fail("node, or the packages of tests/contract/js, are not installed")
    # The old client says something about itself first.
    return json.loads(output_of(mapped[name]).splitlines()[-1])


def test_old_javascript_client_with_mapped_names(mapped: dict[str, Any]) -> None:
    """`@fal-ai/serverless-client` asks in both ways, uploads and edits, by its own host names."""
    told = script_output(mapped, "serverless")
    assert told["updates"][-1] == "COMPLETED"
    assert told["result"]["seed"] == told["run"]["seed"] == 5
    assert told["bytes"] == told["result"]["images"][0]["file_size"]
    assert told["url"].startswith("https://v3b.fal.media/files/")
    check_edited(told["edited"], told["result"])


def check_edited(edited: Any, made: Any) -> None:
    """Check that an edit gave an image, and another one than the picture that it began with."""
    (image,) = edited["images"]
    assert image["url"].startswith("https://v3b.fal.media/files/")
    assert image["file_size"] != made["images"][0]["file_size"]


def check_page(told: Any) -> None:
    """Check what a page got that has no key of its own."""
    assert "error" not in told, told
    assert told["updates"][-1] == "COMPLETED"
    assert told["made"]["seed"] == told["run"]["seed"] == 5
    assert told["bytes"] == told["made"]["images"][0]["file_size"]
    check_edited(told["edited"], told["made"])


def test_page_behind_fal_s_own_server_proxy(mapped: dict[str, Any]) -> None:
    """`@fal-ai/server-proxy` puts the key in, and only it can: queue, run, upload and edit."""
    told = script_output(mapped, "proxied")
    assert told["keyless"] == 401
    check_page(told["node"])


def test_page_in_a_browser_behind_fal_s_own_server_proxy(mapped: dict[str, Any]) -> None:
    """The same page in Chromium, which also shows the image."""
    told = script_output(mapped, "proxied")
    if "browser" not in told:
        pytest.skip(f"{BROWSER} is not installed; the page runs in Node all the same")
    check_page(told["browser"])
    assert told["browser"]["shown"] == [512, 512]
