"""A gateway that dies while its runner is given another model: nothing accepted is lost."""

from pathlib import Path

from pipelines.types import Model
from tests.faults.conftest import MakeGateway
from tests.faults.gateway import ENDPOINT, Client, Gateway, wait_until
from tests.faults.model_folders import make_model_folder
from tests.faults.rows import row_of

KLEIN = "fal-ai/flux-2/klein/4b"


def state_of(client: Client, endpoint_id: str) -> str:
    """Return how it stands with an endpoint, by the list of models."""
    answer = client.http.get("/v1/models", params={"endpoint_id": endpoint_id})
    (entry,) = answer.json()["models"]
    state: str = entry["serving"]["state"]
    return state


def submit_klein(client: Client) -> str:
    """Submit a request for the other model."""
    fields = {"prompt": "plain", "image_size": "square"}
    answer = client.http.post(f"/queue/{KLEIN}", json=fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["request_id"])


def make_both(make_gateway: MakeGateway, folder: Path) -> Gateway:
    """Make a gateway with two models; the folder of the second lets it load only when told."""
    folders = {
        model: make_model_folder(folder / model, model) for model in (Model.DEV, Model.KLEIN_4B)
    }
    return make_gateway(
        MODEL="",
        MODELS=",".join(f"{model}={path}" for model, path in folders.items()),
        PIPELINE_FACTORY="fault_pipelines:by_folder",
    )


def test_a_kill_during_a_switch_loses_nothing(make_gateway: MakeGateway, tmp_path: Path) -> None:
    """What waits for either model is made by the next gateway, with no charge for the kill."""
    gateway = make_both(make_gateway, tmp_path).start()
    client = Client(gateway)
    assert client.wait(client.submit("plain")).status_code == 200
    assert (state_of(client, ENDPOINT), state_of(client, KLEIN)) == ("loaded", "loadable")
    held = tmp_path / "klein-4b" / "held"
    held.touch()
    klein = submit_klein(client)
    wait_until(lambda: state_of(client, KLEIN) == "loading", 30, "it does not switch")
    ready = client.ready()
    assert ready.status_code == 200
    assert ready.json()["models"] == {
        "dev": {"state": "loadable", "reason": None},
        "klein-4b": {"state": "loading", "reason": None},
    }
    dev = client.submit("plain")
    gateway.kill()
    held.unlink()
    client = Client(gateway.start())
    for request_id in (klein, dev):
        assert client.wait(request_id).status_code == 200
        row = row_of(gateway.data_dir, request_id)
        assert (row["attempts"], row["runner_deaths"]) == (1, 0)
    assert row_of(gateway.data_dir, klein)["model"] == "klein-4b"
    assert gateway.stop() == 0


def test_a_model_that_is_not_here_is_told_at_every_door(make_gateway: MakeGateway) -> None:
    """Submit, run and stream: 404, with what is missing and what would change that."""
    client = Client(make_gateway().start())
    fields = {"prompt": "plain", "image_size": "square"}
    for path in (f"/queue/{KLEIN}", f"/{KLEIN}", f"/{KLEIN}/stream"):
        answer = client.http.post(path, json=fields)
        assert answer.status_code == 404
        assert "FLUX2_MODELS=klein-4b=FOLDER" in answer.json()["detail"]


def test_a_box_without_dev(make_gateway: MakeGateway, tmp_path: Path) -> None:
    """Only klein: its requests are made, and [dev]'s are told what is missing."""
    folder = make_model_folder(tmp_path / "klein", Model.KLEIN_4B)
    client = Client(make_gateway(MODEL="", MODELS=f"klein-4b={folder}").start())
    klein = submit_klein(client)
    assert client.wait(klein).status_code == 200
    assert (state_of(client, ENDPOINT), state_of(client, KLEIN)) == ("missing", "loaded")
    assert client.ready().json()["model"] == "klein"
    refused = client.post("plain")
    assert refused.status_code == 404
    assert "does not have the model dev, only klein-4b" in refused.json()["detail"]


def test_a_folder_of_another_model_ends_the_start(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    """With the folder and what is in it, rather than with images of the wrong model."""
    folder = make_model_folder(tmp_path / "klein", Model.KLEIN_4B)
    gateway = make_gateway(MODEL=str(folder))
    gateway.spawn()
    assert gateway.wait() == 2
    assert "so this is not dev" in gateway.wait_line("the folder of dev cannot be used")
