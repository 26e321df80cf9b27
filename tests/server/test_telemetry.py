"""Logs: one JSON object a line whatever is in it, and no key in any of them."""

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from server.telemetry import HIDDEN, PROMPT_CHARACTERS, prompt_in
from tests.conftest import StartServer
from tests.contract.fault_server import ENDPOINT, INSTANT, start_fault_server
from tests.faults.gateway import wait_until

HOSTILE = (
    'a\n{"level": "info", "msg": "forged"}',
    "a\r\nforged",
    "\x1b[2J\x1b[31mred\x07",
    "line\u2028paragraph\u2029next\x85",
    "nul\x00 and half a pair \ud800",
    '"}\n{"msg": "forged"}',
    "%s %d %(name)s {}",
)

KEY = "0123456789abcdef:fedcba9876543210"
SECRETS = (
    f"Authorization: Key {KEY}",
    "Bearer abc.def-ghi_jkl",
    "Basic bmFtZTpzZWNyZXQ=",
    "wss://box/x?fal_jwt_token=abcdefghi.jkl&a=b",
    "PUT /files/x.png/multipart/eyJ0aWNrZXQ.signed-part HTTP/1.1",
    "http://box/x?a=b&token=abcdefghi.jkl",
)

SCRIPT = """
import json, logging, sys
from server.telemetry import configure_logging
import structlog
configure_logging("info")
for text in json.loads(sys.argv[1]):
    structlog.get_logger("ours").info(text, path=text, **{"key " + text: [text]})
    logging.getLogger("uvicorn.error").error("%s", text)
    logging.getLogger("theirs").warning(text, text)
    try:
        raise ValueError(text)
    except ValueError:
        structlog.get_logger("ours").exception("failed")
        logging.getLogger("theirs").exception("failed")
"""


def log_lines(texts: tuple[str, ...]) -> list[str]:
    """Return what a process logs that puts each text wherever one can be put."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(texts)]
    run = subprocess.run(command, capture_output=True, check=True)
    return run.stderr.decode("ascii").splitlines()


def test_nothing_forges_a_line() -> None:
    """Ours and other libraries' records are one ASCII line each, a JSON object with a time."""
    lines = log_lines(HOSTILE)
    # A record whose own text does not fit its arguments is dropped: it is another's mistake.
    assert len(lines) >= 4 * len(HOSTILE)
    for line in lines:
        assert {"msg", "level", "ts"} <= set(json.loads(line))
        assert line.isprintable()
    assert not [line for line in lines if json.loads(line)["msg"] == "forged"]


def test_secrets_are_hidden_in_any_field() -> None:
    """Keys and tokens as they are sent, and tickets in URLs; what is around them stays."""
    text = "\n".join(log_lines(SECRETS))
    for part in (*KEY.split(":"), "abc.def", "bmFtZ", "abcdefghi", "eyJ0"):
        assert part not in text
    assert f"Key {HIDDEN}" in text
    assert f"fal_jwt_token={HIDDEN}&a=b" in text
    assert f"/multipart/{HIDDEN} HTTP/1.1" in text


@pytest.mark.parametrize(
    ("given", "logged"),
    [
        ({"prompt": "x" * 300}, "x" * PROMPT_CHARACTERS),
        ({"prompt": "short"}, "short"),
        ({"prompt": 7}, None),
        ({}, None),
        (["prompt"], None),
    ],
)
def test_the_prompt_of_an_input(given: object, logged: str | None) -> None:
    """Its beginning, if it is a text; the input was not validated when it was stored."""
    assert prompt_in(given) == logged


@pytest.mark.parametrize("on", [False, True])
def test_a_server_s_log(start_server: StartServer, tmp_path: Path, on: bool) -> None:
    """Prompts only where asked for, keys never, and each line is JSON once it serves."""
    server = start_fault_server(
        start_server, tmp_path, FLUX2_LOG_PROMPTS=str(on), FLUX2_API_KEY=KEY
    )
    served_from = len(server.lines)
    headers = {"authorization": f"Key {KEY}"}
    prompts = [f"okapi {text}" for text in HOSTILE if "\ud800" not in text]
    with httpx2.Client(base_url=server.http, headers=headers, trust_env=False) as http:
        for prompt in prompts:
            assert http.post(f"/{ENDPOINT}", json={**INSTANT, "prompt": prompt}).status_code == 200
        http.get("/%0a%1b[2J/forged", params={"fal_jwt_token": KEY})
        http.put(f"/files/x.png/multipart/{KEY}/1", content=b"x")
        wait_until(
            lambda: sum('"completed"' in line for line in server.lines) >= len(prompts), 20, "log"
        )
    assert server.stop() == 0
    lines = server.lines[served_from:]
    logged = [json.loads(line)["prompt"] for line in lines if '"accepted"' in line]
    assert logged == (prompts if on else [])
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert on or "okapi" not in "".join(lines)
    assert not [part for part in KEY.split(":") if part in "".join(server.lines)]
