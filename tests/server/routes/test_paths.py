"""Which endpoint a path means beside the queue."""

from dataclasses import replace

import pytest

from server.catalogue import CATALOGUE
from server.errors import RequestError
from server.routes import paths
from server.routes.paths import find_carried, find_realtime, find_streamed

ID = "fal-ai/flux-2"


def test_the_suffix_says_what_is_asked_for() -> None:
    """It comes once, behind an id that is served."""
    assert find_realtime(f"/{ID}/realtime").id == ID
    assert find_streamed(f"/{ID}/stream").id == ID
    assert find_carried(f"/ws/{ID}").id == ID
    for find, path in (
        (find_realtime, f"/{ID}"),
        (find_realtime, f"/{ID}/realtime/realtime"),
        (find_realtime, f"/ws/{ID}/realtime"),
        (find_realtime, "/realtime"),
        (find_streamed, f"/queue/{ID}/stream"),
        (find_streamed, f"/{ID}/realtime"),
        (find_carried, f"/ws/{ID}/realtime"),
        (find_carried, "/ws"),
    ):
        with pytest.raises(RequestError) as caught:
            find(path)
        assert caught.value.status == 404


def test_an_id_may_end_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """JavaScript's client then adds no suffix, Python's adds it once more."""
    own = replace(CATALOGUE[ID], id=f"{ID}/realtime")
    catalogue = {**CATALOGUE, own.id: own}
    monkeypatch.setattr(paths, "CATALOGUE", catalogue)
    monkeypatch.setattr(paths, "find_endpoint", catalogue.__getitem__)
    assert find_realtime(f"/{ID}/realtime") is own
    assert find_realtime(f"/{ID}/realtime/realtime") is own
