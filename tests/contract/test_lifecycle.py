"""Starting and stopping: what a server refuses to start with, and what survives its end."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import RunningServer, StartServer
from tests.contract.conftest import (
    SMALL_INPUTS,
    WAIT_SECONDS,
    Api,
    check_image,
    connect,
    kept_path,
    poll_until,
)

FLUX, FLEX = "fal-ai/flux-2", "fal-ai/flux-2-flex"


def try_to_start(data_dir: Path, *options: str, **env: str) -> tuple[int, str]:
    """Run `serve` where it must refuse; return the exit code and all that it said."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FLUX2_")}
    done = subprocess.run(
        [Path(sys.executable).parent / "flux2-serve", "serve", "--port", "0", *options],
        env={**inherited, "FLUX2_DATA_DIR": str(data_dir), "FLUX2_TLS_PORT": "none", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=WAIT_SECONDS,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("safety", ["required", "optional"])
@pytest.mark.parametrize("damage", ["absent", "corrupt"])
def test_safety_must_be_decided(tmp_path: Path, demo_model: Path, safety: str, damage: str) -> None:
    """Without a whole checker it starts only for those who say that they know."""
    folder = tmp_path / "model" / "safety_checker"
    if damage == "corrupt":
        shutil.copytree(demo_model / "safety_checker", folder)
        (folder / "model.safetensors").write_bytes(b"<html>not found</html>")
    env = {"FLUX2_MODEL": str(tmp_path / "model"), "FLUX2_SAFETY": safety}
    code, said = try_to_start(tmp_path / "data", **env)
    assert code == 2
    assert "FLUX2_SAFETY=off" in said
    assert str(folder) in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FLUX2_MODLE", "x", "FLUX2_MODEL"),
        ("FLUX2_SAFTY", "off", "FLUX2_SAFETY"),
        ("FLUX2_LOG_LEVEL", "loud", "log_level"),
        ("FLUX2_SWEEP_SECONDS", "0", "sweep_seconds"),
    ],
)
def test_wrong_setting(tmp_path: Path, demo_model: Path, name: str, value: str, words: str) -> None:
    """It is refused by name, an unknown one with the nearest name that exists."""
    env = {"FLUX2_SAFETY": "off", "FLUX2_MODEL": str(demo_model), name: value}
    code, said = try_to_start(tmp_path, **env)
    assert code == 2
    assert words in said
    assert "Traceback" not in said


def test_one_server_for_one_data_folder(server: RunningServer, demo_model: Path) -> None:
    """A second one on the folder of a running one refuses, and the first does not mind."""
    env = {"FLUX2_SAFETY": "off", "FLUX2_MODEL": str(demo_model)}
    code, said = try_to_start(server.data_dir, **env)
    assert code == 2
    assert "in use" in said
    assert "Traceback" not in said
    with connect(server) as http:
        assert http.get("/health/ready").status_code == 200


def test_port_in_use(server: RunningServer, tmp_path: Path, demo_model: Path) -> None:
    """The message names the port."""
    port = server.http.rpartition(":")[2]
    env = {"FLUX2_SAFETY": "off", "FLUX2_MODEL": str(demo_model)}
    code, said = try_to_start(tmp_path, "--port", port, **env)
    assert code == 2
    assert port in said
    assert "Traceback" not in said


def test_ports_are_printed(server: RunningServer) -> None:
    """Port 0 picks free ones and says which."""
    for url in (server.http, server.https):
        assert int(url.rpartition(":")[2]) > 0
    assert server.http.startswith("http://127.0.0.1:")
    assert server.https.startswith("https://127.0.0.1:")


def test_missing_model_file(start_server: StartServer, demo_model: Path, tmp_path: Path) -> None:
    """The server lives, says what is missing instead of loading for ever, and ends as always."""
    model = tmp_path / "model"
    shutil.copytree(demo_model, model)
    missing = Path("vae") / "diffusion_pytorch_model.safetensors"
    (model / missing).unlink()
    env = {"FLUX2_MODEL": str(model), "FLUX2_TLS_PORT": "none"}
    server = start_server(tmp_path / "data", wait_ready=False, **env)
    with connect(server) as http:

        def reason() -> str | None:
            answer = http.get("/health/ready")
            assert answer.status_code == 503
            told: str = answer.json()["reason"]
            return told if str(missing) in told else None

        assert "missing" in poll_until(reason, "the missing file is named")
        live = http.get("/health/live")
        assert (live.status_code, live.json()) == (200, {"status": "live"})
    assert server.stop() == 0


def ended(server: RunningServer, kept: str) -> bool:
    """Say whether the server's log tells of the end of this request."""
    request_id = kept.rpartition("/")[2]
    return any(request_id in line and '"completed"' in line for line in server.lines)


def test_restart_finishes_the_work(start_server: StartServer, tmp_path: Path) -> None:
    """SIGTERM ends the server with 0; what ran and what waited is done by the next one.

    Whoever waits on the synchronous route is told 503 and, in the header, the request's id.
    """
    first = start_server(tmp_path, FLUX2_DRAIN_SECONDS="0.1", FLUX2_TLS_PORT="none")
    with connect(first) as http, ThreadPoolExecutor() as threads:
        api = Api(http)
        running = api.submit(FLUX, {**SMALL_INPUTS[FLUX], "num_inference_steps": 25})
        waiting = [api.submit(FLEX, SMALL_INPUTS[FLEX]) for _ in range(2)]
        refused = api.submit(FLEX, {})
        caller = threads.submit(api.run, FLEX, SMALL_INPUTS[FLEX])
        poll_until(lambda: http.get("/health/ready").json()["queue"]["IN_QUEUE"] == 4, "4 wait")
        assert first.stop() == 0
        told = caller.result()
    assert told.status_code == 503
    assert told.json()["error_type"] == "runner_disconnected"
    asked = kept_path(FLEX, told.headers["x-fal-request-id"])
    everything = (running, *waiting, refused, asked)
    assert not any(ended(first, kept) for kept in everything)
    second = start_server(tmp_path, FLUX2_TLS_PORT="none")
    with connect(second) as http:
        finish(Api(http), second.http, (running, *waiting, asked), refused)
    assert second.stop(signal.SIGINT) == 0
    poll_until(lambda: all(ended(second, kept) for kept in everything), "the log tells of all")
    assert "Traceback" not in "".join(first.lines + second.lines)


def finish(api: Api, origin: str, good: tuple[str, ...], refused: str) -> None:
    """Wait for the requests of the server before; their URLs still have that server's port."""
    for kept in good:
        api.wait(kept)
        (image,) = api.result(kept).json()["images"]
        local = {**image, "url": f"{origin}/files/{image['file_name']}"}
        check_image(api, local, (512, 512), "png")
    api.wait(refused)
    assert api.result(refused).status_code == 422
