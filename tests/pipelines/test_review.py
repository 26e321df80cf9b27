"""The quarantine folder: blocked images for the operator's eyes."""

import json
import stat
from pathlib import Path

import pytest
from PIL import Image

from pipelines.review import keep_for_review
from pipelines.verdicts import Reason, Verdict

VERDICT = Verdict(flagged=True, score=0.75, reason=Reason.NSFW)


def test_a_blocked_image_is_kept_with_its_verdict(tmp_path: Path) -> None:
    """Every pixel of it, under the request's id, readable by its owner alone."""
    folder = tmp_path / "deep" / "quarantine"
    image = Image.effect_noise((40, 30), 80).convert("RGB")
    path = keep_for_review(folder, "some-id", 2, image, VERDICT)
    with Image.open(path) as kept:
        assert kept.tobytes() == image.tobytes()
    told = json.loads((folder / "some-id-2.json").read_text())
    assert told == {"request_id": "some-id", "index": 2, "reason": "nsfw", "score": 0.75}
    assert {entry.name for entry in folder.iterdir()} == {"some-id-2.png", "some-id-2.json"}
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_same_image_again_replaces_it(tmp_path: Path) -> None:
    """A request that is tried again leaves one picture, the last."""
    for colour in ("red", "blue"):
        path = keep_for_review(tmp_path, "id", 0, Image.new("RGB", (4, 4), colour), VERDICT)
    with Image.open(path) as kept:
        assert kept.getpixel((0, 0)) == (0, 0, 255)


def test_a_folder_that_cannot_be_is_an_oserror(tmp_path: Path) -> None:
    """The caller logs it: the image is blocked all the same."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        keep_for_review(tmp_path / "file", "id", 0, Image.new("RGB", (4, 4)), VERDICT)
