"""`GET /v1/models`: fal's form and OpenAI's in one, and how it stands with each endpoint."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pipelines.types import Model
from server.app import create_app
from server.catalogue import CATALOGUE
from tests.faults.model_folders import make_model_folder
from tests.server.conftest import MakeSettings

pytestmark = pytest.mark.anyio

DEV, KLEIN, KLEIN_9B = "fal-ai/flux-2", "fal-ai/flux-2/klein/4b", "fal-ai/flux-2/klein/9b"
PRO = "fal-ai/flux-2-pro"


@pytest.fixture
async def http(make_settings: MakeSettings, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """Return a client of a server that was told of three models, one of which is not whole.

    It does not run, so nothing is loaded.
    """
    folders = {
        model: make_model_folder(tmp_path / model, model)
        for model in (Model.DEV, Model.KLEIN_4B, Model.KLEIN_9B)
    }
    (folders[Model.KLEIN_9B] / "vae" / "config.json").unlink()
    app = create_app(make_settings(model=None, models=folders))
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def listing(http: httpx2.AsyncClient, **params: Any) -> dict[str, Any]:
    """Return a page."""
    answer = await http.get("/v1/models", params=params)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def found(http: httpx2.AsyncClient, **params: Any) -> list[str]:
    """Return the ids of a page."""
    return [entry["endpoint_id"] for entry in (await listing(http, **params))["models"]]


async def test_all_of_the_family_with_how_it_stands(http: httpx2.AsyncClient) -> None:
    """Every endpoint is there in fal's form, and says whether it can be asked for, or why not."""
    body = await listing(http)
    assert (body["next_cursor"], body["has_more"]) == (None, False)
    assert [entry["endpoint_id"] for entry in body["models"]] == list(CATALOGUE)
    entries = {entry["endpoint_id"]: entry for entry in body["models"]}
    metadata = entries[KLEIN]["metadata"]
    assert metadata["display_name"] == "FLUX.2 klein 4b"
    assert metadata["category"] == "text-to-image"
    assert metadata["description"] == CATALOGUE[KLEIN].description
    assert metadata["status"] == "active"
    assert metadata["model_url"] == f"http://localhost/{KLEIN}"
    assert metadata["stream_url"] == f"http://localhost/{KLEIN}/stream"
    loadable = {"model": "klein-4b", "state": "loadable", "reason": None}
    assert entries[KLEIN]["serving"] == loadable
    states = {
        name: (entries[name]["serving"]["model"], entries[name]["serving"]["state"])
        for name in (DEV, KLEIN_9B, f"{KLEIN}/base", PRO)
    }
    assert states == {
        DEV: ("dev", "loadable"),
        KLEIN_9B: ("klein-9b", "missing"),
        f"{KLEIN}/base": ("klein-4b-base", "missing"),
        PRO: ("dev", "missing"),
    }
    assert "vae/config.json: missing" in entries[KLEIN_9B]["serving"]["reason"]
    assert "FLUX2_MODELS=klein-4b-base=FOLDER" in entries[f"{KLEIN}/base"]["serving"]["reason"]
    assert f"FLUX2_ALIASES={PRO}" in entries[PRO]["serving"]["reason"]


async def test_a_menu_of_openai_s_form_has_what_is_served(http: httpx2.AsyncClient) -> None:
    """`object` and `data` as programs for that interface read them."""
    body = await listing(http)
    assert body["object"] == "list"
    ids = [entry["id"] for entry in body["data"]]
    assert {DEV, KLEIN} <= set(ids)
    assert not {KLEIN_9B, f"{KLEIN}/base", PRO} & set(ids)
    assert {entry["object"] for entry in body["data"]} == {"model"}
    assert all(isinstance(entry["created"], int) and entry["owned_by"] for entry in body["data"])


async def test_what_is_asked_for(http: httpx2.AsyncClient) -> None:
    """By ids, repeated or with commas; by words, category and status, all together."""
    assert await found(http, endpoint_id=KLEIN) == [KLEIN]
    assert await found(http, endpoint_id=[KLEIN, DEV]) == [DEV, KLEIN]
    assert await found(http, endpoint_id=f"{KLEIN},{DEV}") == [DEV, KLEIN]
    edits = await found(http, category="image-to-image")
    assert edits == [name for name, endpoint in CATALOGUE.items() if endpoint.reference_limit]
    assert await found(http, q="KLEIN 9b", category="image-to-image", status="active") == [
        f"{KLEIN_9B}/edit",
        f"{KLEIN_9B}/base/edit",
        f"{KLEIN_9B}/edit/lora",
        f"{KLEIN_9B}/base/edit/lora",
    ]
    assert await found(http, q="nothing like it") == []
    assert await found(http, status="deprecated") == []


async def test_pages_lead_through_all(http: httpx2.AsyncClient) -> None:
    """Each cursor goes on where the page before ended; the menu is whole on every page."""
    ids, cursor = [], None
    for _ in CATALOGUE:
        params = {"limit": 4, **({"cursor": cursor} if cursor else {})}
        body = await listing(http, **params)
        ids += [entry["endpoint_id"] for entry in body["models"]]
        assert DEV in [entry["id"] for entry in body["data"]]
        assert body["has_more"] is (body["next_cursor"] is not None)
        cursor = body["next_cursor"]
        if cursor is None:
            break
    assert ids == list(CATALOGUE)


async def test_the_document_of_each_on_request(http: httpx2.AsyncClient) -> None:
    """`expand` brings the same document that fal's generators fetch elsewhere."""
    (entry,) = (await listing(http, endpoint_id=KLEIN, expand="openapi-3.0"))["models"]
    document = await http.get("/api/openapi/queue/openapi.json", params={"endpoint_id": KLEIN})
    assert entry["openapi"] == document.json()
    (plain,) = (await listing(http, endpoint_id=KLEIN))["models"]
    assert "openapi" not in plain


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"endpoint_id": "fal-ai/flux-3"}, 404),
        ({"endpoint_id": ",".join([DEV] * 51)}, 400),
        ({"cursor": "?"}, 400),
        ({"cursor": "LTE="}, 400),
        ({"cursor": "4pyT"}, 400),
        ({"limit": "0"}, 422),
        ({"status": "best"}, 422),
    ],
)
async def test_bad_questions(http: httpx2.AsyncClient, params: dict[str, str], status: int) -> None:
    """Each is told in fal's shape."""
    answer = await http.get("/v1/models", params=params)
    assert answer.status_code == status
    assert "detail" in answer.json()
