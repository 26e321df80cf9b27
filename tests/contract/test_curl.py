"""The curl commands of fal's own pages, with nothing but the host changed, and the real curl."""

import json
import os
import shlex
import shutil
import subprocess
from typing import Any

import pytest

from tests.conftest import RunningServer
from tests.contract.conftest import (
    SMALL_INPUTS,
    WAIT_SECONDS,
    Api,
    check_image,
    make_picture_uri,
    skip_or_fail,
)

COMMAND = """\
curl --request POST \\
  --url https://{host}/{endpoint_id} \\
  --header "Authorization: Key $FAL_KEY" \\
  --header "Content-Type: application/json" \\
  --data {data}"""
"""As the pages have it, for every endpoint alike."""

PROMPTS = {
    "fal-ai/flux-2": "A dusty, smiling traveller",
    "fal-ai/flux-2-dev": "A dusty, smiling traveller",
    "fal-ai/flux-2/flash": "Ants build a tower of sugar",
    "fal-ai/flux-2/flash/edit": "Take the lid off",
    "fal-ai/flux-2-flex": "A fluffy monster and its doughnut",
}
EDIT = "fal-ai/flux-2/flash/edit"


@pytest.fixture(scope="module", autouse=True)
def curl() -> None:
    """Skip where curl is not installed."""
    if shutil.which("curl") is None:
        skip_or_fail("curl is not installed")


def run_command(command: str) -> Any:
    """Run a shell command and return the JSON that it prints; curl's own words go elsewhere."""
    done = subprocess.run(
        ["sh", "-c", command],
        env={"PATH": os.environ.get("PATH", ""), "FAL_KEY": "local:local"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_SECONDS,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("endpoint_id", PROMPTS)
def test_command_of_the_page(api: Api, server: RunningServer, endpoint_id: str) -> None:
    """Over https, with every value but the prompt (and the image to edit) left to its default."""
    body: dict[str, Any] = {"prompt": PROMPTS[endpoint_id]}
    if endpoint_id == EDIT:
        body["image_urls"] = [make_picture_uri()]
    command = COMMAND.format(
        host=server.tls_address, endpoint_id=endpoint_id, data=shlex.quote(json.dumps(body))
    )
    answer = run_command(f"{command} --cacert {shlex.quote(str(server.ca_path))}")
    (image,) = answer["images"]
    assert image["url"].startswith(f"https://{server.tls_address}/files/")
    local = {**image, "url": f"{server.http}/files/{image['file_name']}"}
    size = (1024, 1024) if endpoint_id == EDIT else (1024, 768)
    check_image(api, local, size, "jpeg" if endpoint_id == "fal-ai/flux-2-flex" else "png")


@pytest.mark.parametrize("endpoint_id", SMALL_INPUTS)
def test_without_content_type(api: Api, server: RunningServer, endpoint_id: str) -> None:
    """Over http, without a key, and with curl's own content type, which is that of a form."""
    data = shlex.quote(json.dumps(SMALL_INPUTS[endpoint_id]))
    answer = run_command(f"curl {server.http}/{endpoint_id} -d {data}")
    check_image(api, answer["images"][0], (512, 512), "png")


def test_download(server: RunningServer, api: Api) -> None:
    """The URL in an answer is all that curl needs to fetch the file, over https too."""
    (image,) = api.run("fal-ai/flux-2-flex", SMALL_INPUTS["fal-ai/flux-2-flex"]).json()["images"]
    secure = f"https://{server.tls_address}/files/{image['file_name']}"
    for words in ([image["url"]], [secure, "--cacert", str(server.ca_path)]):
        done = subprocess.run(
            ["curl", "--fail", *words], capture_output=True, timeout=WAIT_SECONDS, check=True
        )
        assert len(done.stdout) == image["file_size"]
