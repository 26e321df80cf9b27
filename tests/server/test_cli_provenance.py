"""The commands about where images come from, as an operator types them; replays need a server."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from PIL import Image
from typer.testing import CliRunner

from server.c2pa_certs import C2PA_FOLDER
from server.cli import app
from server.provenance.watermark import embed
from server.receipts.signed import load_key, sign_receipt

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Leave the log as it was: `serve` sends it to a stream that is closed when the test ends."""
    config, handlers = structlog.get_config(), logging.root.handlers[:]
    yield
    structlog.configure(**config)
    logging.root.handlers[:] = handlers


def call(*arguments: object) -> tuple[int, str]:
    """Run the program in this process; return exit status and output, errors included."""
    done = RUNNER.invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_watermark_says_of_each_file_whether_it_is_there(tmp_path: Path) -> None:
    """By words and exit status; what is no picture is a mistake."""
    image = Image.linear_gradient("L").resize((512, 512)).convert("RGB")
    bare, marked, text = (tmp_path / name for name in ("bare.png", "marked.jpg", "text.txt"))
    image.save(bare)
    embed(image).save(marked, quality=80)
    text.write_text("none")
    assert call("watermark", marked)[0] == 0
    code, told = call("watermark", marked, bare)
    assert code == 1
    assert [line.split(": ")[1][:15] for line in told.splitlines()] == [
        "watermark found",
        "no watermark (s",
    ]
    assert call("watermark", text)[0] == 2


def test_certs_makes_a_development_certificate(tmp_path: Path) -> None:
    """It prints the settings to use it with, and leaves the server's own certificate alone."""
    code, told = call("certs", "--c2pa", "--data-dir", tmp_path)
    assert code == 0
    settings = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    assert set(settings) == {"FLUX2_C2PA_CERT", "FLUX2_C2PA_KEY"}
    assert all(Path(path).is_file() for path in settings.values())
    assert [path.name for path in tmp_path.iterdir()] == [C2PA_FOLDER]


def test_serve_refuses_credentials_that_cannot_sign(tmp_path: Path) -> None:
    """At once and with the reason, not at the first image."""
    config = tmp_path / "settings.toml"
    config.write_text(f'c2pa_cert = "{tmp_path}/none.pem"\n')
    code, told = call("serve", "--data-dir", tmp_path / "data", "--config", config)
    assert code == 2
    assert "FLUX2_C2PA_CERT and FLUX2_C2PA_KEY go together" in told


@pytest.mark.parametrize("arguments", [[], ["ID", "--verify", "file"]])
def test_receipt_wants_one_thing(tmp_path: Path, arguments: list[str]) -> None:
    """An id or a file."""
    code, told = call("receipt", *arguments, "--data-dir", tmp_path)
    assert (code, "give the id of a request" in told) == (2, True)


def test_without_a_data_folder_there_is_no_receipt(tmp_path: Path) -> None:
    """The mistake is told, and nothing is made in the folder."""
    code, told = call("receipt", "ID", "--data-dir", tmp_path / "none")
    assert code == 2
    assert "queue.sqlite3" in told
    assert not (tmp_path / "none").exists()


def test_verify_takes_a_key_that_was_given(tmp_path: Path) -> None:
    """Who has only the public half can check; who has another, or none, cannot."""
    for name in ("ours", "theirs"):
        load_key(tmp_path / name)
    path = tmp_path / "receipt.json"
    path.write_text(sign_receipt({"request_id": "ID"}, load_key(tmp_path / "ours")))
    verify = ("receipt", "--verify", path, "--data-dir", tmp_path / "none")
    keys = [tmp_path / name / "receipts-ed25519.pub" for name in ("ours", "theirs")]
    assert [call(*verify, "--key", key)[0] for key in keys] == [0, 1]
    assert call(*verify)[0] == 1
    assert call("receipt", "--verify", tmp_path / "nothing", "--data-dir", tmp_path)[0] == 2
