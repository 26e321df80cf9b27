"""Versions of `fal_client` that programs have pinned, each as it was published."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningServer
from tests.contract.clients.conftest import by_hosts, by_proxy, run_client
from tests.contract.conftest import SMALL_INPUTS, Api, check_image

ENDPOINT = "fal-ai/flux-2"
INPUT = SMALL_INPUTS[ENDPOINT]
VERSIONS = {"0.5": "0.5.9", "0.9": "0.9.1", "0.11": "0.11.0", "0.13": "0.13.2"}


def check(api: Api, server: RunningServer, told: dict[str, Any], version: str) -> None:
    """Check that all ways gave the same image, and that the client was the old one."""
    assert told["version"] == VERSIONS[version]
    assert told["subscribe"]["updates"][-1] == "Completed"
    assert any("step 2 of" in line for line in told["subscribe"]["lines"])
    results = [told["subscribe"]["result"], told["run"], told["async"], told["handle"]]
    pictures = set()
    for result in results:
        (image,) = result["images"]
        assert result["seed"] == 5
        local = {**image, "url": f"{server.http}/files/{image['file_name']}"}
        pictures.add(check_image(api, local, (512, 512), "png").tobytes())
    assert len(pictures) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_through_the_proxy(
    keyed: RunningServer, keyed_api: Api, picture: Path, version: str
) -> None:
    """Subscribe, submit, run and uploads, with nothing but the printed recipe and a key."""
    told = run_client(
        f"fal-client-{version}",
        "old_fal_client.py",
        *(ENDPOINT, INPUT, picture),
        env={},
        recipe=by_proxy(keyed),
    )
    check(keyed_api, keyed, told, version)
    edited = told["edit"]
    assert all(url.startswith("https://v3b.fal.media/files/") for url in edited["urls"])
    assert edited["stored"] == picture.stat().st_size
    assert edited["result"]["images"][0]["file_size"] > 1000


@pytest.mark.parametrize("version", ["0.11", "0.13"])
def test_by_host_names_of_their_own(keyed: RunningServer, keyed_api: Api, version: str) -> None:
    """From 0.11 on the queue has a variable of its own, so that no proxy is needed."""
    told = run_client(
        f"fal-client-{version}",
        "old_fal_client.py",
        *(ENDPOINT, INPUT, None),
        env=by_hosts(keyed),
    )
    check(keyed_api, keyed, told, version)
