"""What a replay needs and what it says of a difference; the replays themselves need a server."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.types import LoadOptions, Pipeline
from server.errors import ConfigurationError
from server.receipts.hashes import FileHashes
from server.receipts.record import pixels_sha256, read_applied, read_build
from server.receipts.replay import (
    IDENTICAL_DECIBELS,
    decibels,
    differences,
    load,
    match_references,
    order_of,
)

FIRST, SECOND, THIRD = b"first", b"second", b"third"


def digest(data: bytes) -> str:
    """Return the hash that a receipt has of a reference image."""
    return hashlib.sha256(data).hexdigest()


def make_receipt(**changes: Any) -> dict[str, Any]:
    """Return the parts of a receipt that a replay reads first."""
    return {
        "endpoint_id": "fal-ai/flux-2-flex",
        "input": {"prompt": "A fox", "image_size": "square"},
        "references": [],
        "seed": 77,
        "prompt": None,
        **changes,
    }


def test_references_are_found_by_their_hash() -> None:
    """In the receipt's order, the same one twice, whatever else is offered."""
    wanted = [digest(SECOND), digest(FIRST), digest(SECOND)]
    assert match_references(wanted, [FIRST, THIRD, SECOND]) == [SECOND, FIRST, SECOND]


def test_a_reference_without_a_hash_is_what_nothing_else_matches() -> None:
    """Images from elsewhere are not kept, so that their hash is not known."""
    assert match_references([None, digest(FIRST)], [FIRST, SECOND]) == [SECOND, FIRST]


@pytest.mark.parametrize("wanted", [[digest(THIRD)], [None, None, None]])
def test_a_missing_reference_is_told_by_its_place(wanted: list[str | None]) -> None:
    """The operator reads which one to bring, and how."""
    with pytest.raises(ConfigurationError, match=r"reference image \d .*--reference FILE"):
        match_references(wanted, [FIRST, SECOND])


def test_the_request_is_the_one_that_was_run() -> None:
    """With the seed that was drawn; an expanded prompt is used and not expanded again."""
    order = order_of(make_receipt())
    assert (order.seed, order.prompt, order.settings.expand_prompt) == (77, "A fox", True)
    order = order_of(make_receipt(prompt="A red fox in the snow"))
    assert (order.prompt, order.settings.expand_prompt) == ("A red fox in the snow", False)


@pytest.mark.parametrize(
    "changes", [{"endpoint_id": "fal-ai/flux-9"}, {"input": {"image_size": "square"}}]
)
def test_a_request_of_another_version_is_refused(changes: dict[str, Any]) -> None:
    """In words, where an endpoint or a field is not known."""
    with pytest.raises(ConfigurationError, match="cannot make it again"):
        order_of(make_receipt(**changes))


def test_how_far_two_pictures_are() -> None:
    """One level everywhere is 48.1 dB."""
    grey = Image.new("RGB", (16, 8), (100, 100, 100))
    assert decibels(grey, grey) == IDENTICAL_DECIBELS
    assert round(decibels(grey, Image.new("RGB", (16, 8), (101, 101, 101))), 1) == 48.1


def test_what_differs_is_named(tmp_path: Path) -> None:
    """Files by content, versions, device; and that nothing is known where nothing was noted."""
    weights = tmp_path / "model" / "weights"
    weights.parent.mkdir()
    weights.write_bytes(FIRST)
    seen = weights.stat()
    build = {
        "model_folder": str(weights.parent),
        "files": [
            {
                "path": str(weights),
                "size_bytes": seen.st_size,
                "modified_ns": seen.st_mtime_ns,
            }
        ],
        "lora": None,
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
    }
    (tmp_path / "builds").mkdir()
    (tmp_path / "builds" / "abc.json").write_text(json.dumps(build))
    hashes = FileHashes(tmp_path / "builds")
    then = read_build(tmp_path, "abc", hashes)
    assert then is not None
    assert then["files"] == {"weights": digest(FIRST)}
    assert str(tmp_path) not in json.dumps(then), "the operator's paths stay here"
    same = differences({"build": then}, tmp_path, "abc", hashes)
    assert same == ["nothing that was written down differs"]
    other = {**then, "files": {"weights": digest(SECOND)}, "device": "NVIDIA H200"}
    told = differences({"build": other}, tmp_path, "abc", hashes)
    assert [line.partition(":")[0] for line in told] == ["weights", "device"]
    for unknown in (None, "none", "../abc"):
        assert read_build(tmp_path, unknown, hashes) is None
        assert "not written down" in differences({"build": other}, tmp_path, unknown, hashes)[0]


def test_the_hash_of_pixels_knows_their_shape() -> None:
    """The same bytes in another shape are another picture; the file's format does not count."""
    wide, tall = (Image.new("RGB", size, "red") for size in ((4, 2), (2, 4)))
    assert wide.tobytes() == tall.tobytes()
    assert pixels_sha256(wide) != pixels_sha256(tall)
    buffer = io.BytesIO()
    wide.save(buffer, "WEBP", lossless=True)
    assert pixels_sha256(Image.open(buffer)) == pixels_sha256(wide)


def test_what_was_applied_is_read_from_its_header() -> None:
    """Also where there is none."""
    assert read_applied("acceleration=none, size=8x8") == {"acceleration": "none", "size": "8x8"}
    assert read_applied(None) == {}


def make_nothing(_: LoadOptions, _on_progress: object) -> tuple[Pipeline | None, str]:
    """Stand in for a pipeline's factory."""
    return None, "nothing"


def test_the_pipeline_is_loaded_by_its_path(tmp_path: Path) -> None:
    """As a runner does it, so that the server's own code never imports torch."""
    assert load(f"{__name__}:make_nothing", LoadOptions(model=tmp_path)) is None
