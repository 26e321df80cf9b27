"""What `flux2-serve client-env` prints, read back by the programs that it is for."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from server.client_env import DUMMY_KEY, client_env
from server.errors import ConfigurationError

VARIABLES = ("FAL_RUN_HOST", "FAL_QUEUE_RUN_HOST", "SSL_CERT_FILE", "FAL_KEY")
CA_PATH = Path("/data/tls/ca.pem")
NASTY = 'it\'s a "$HOME" `touch pwned` $(touch pwned) \\ ; # !'


def run_in_bash(recipe: str, folder: Path, how: str) -> dict[str, str]:
    """Let bash take the recipe in, as a sourced file or by `eval`, and dump our variables."""
    (folder / "recipe.sh").write_text(recipe)
    script = {"source": ". ./recipe.sh", "eval": 'eval "$(cat recipe.sh)"'}[how]
    done = subprocess.run(
        ["bash", "--norc", "-euc", f"{script}; env -0"],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    pairs = (line.split("=", 1) for line in done.stdout.decode().split("\0") if line)
    found = {name: value for name, value in pairs if name in VARIABLES}
    assert [path.name for path in folder.iterdir()] == ["recipe.sh"], "a comment was executed"
    return found


def comment_after(recipe: str, heading: str) -> list[str]:
    """Return the lines of the comment block that `heading` opens, without their `#`."""
    lines = [line.removeprefix("#") for line in recipe.splitlines()]
    start = next(index for index, line in enumerate(lines) if line.strip().startswith(heading))
    block = lines[start + 1 :]
    return block[: block.index("")] if "" in block else block


@pytest.mark.parametrize("how", ["source", "eval"])
def test_bash_reads_the_variables_back(tmp_path: Path, how: str) -> None:
    """The queue has a path of its own, so that one port serves both of fal's hosts."""
    recipe = client_env("box", 8000, 8443, CA_PATH, "id:secret")
    assert run_in_bash(recipe, tmp_path, how) == {
        "FAL_RUN_HOST": "box:8443",
        "FAL_QUEUE_RUN_HOST": "box:8443/queue",
        "SSL_CERT_FILE": "/data/tls/ca.pem",
        "FAL_KEY": "id:secret",
    }


@pytest.mark.parametrize("how", ["source", "eval"])
def test_no_value_can_break_out_of_its_quotes(tmp_path: Path, how: str) -> None:
    """Spaces, quotes and substitutions arrive as they are, and nothing of them is executed."""
    recipe = client_env("box", 8000, 8443, Path("/data") / NASTY / "ca.pem", NASTY)
    found = run_in_bash(recipe, tmp_path, how)
    assert found["SSL_CERT_FILE"] == f"/data/{NASTY}/ca.pem"
    assert found["FAL_KEY"] == NASTY


@pytest.mark.parametrize("host", ["fd00::2", "[fd00::2]"])
def test_ipv6_addresses_are_bracketed_once(tmp_path: Path, host: str) -> None:
    """A port after a bare IPv6 address would be read as part of it."""
    recipe = client_env(host, 8000, 8443, CA_PATH, None)
    assert run_in_bash(recipe, tmp_path, "source")["FAL_RUN_HOST"] == "[fd00::2]:8443"
    assert "http://[fd00::2]:8000/api/fal/proxy" in recipe


def test_server_without_a_key_gets_a_dummy(tmp_path: Path) -> None:
    """Without one, fal's Python client refuses to send anything; curl does not need it."""
    recipe = client_env("box", 8000, 8443, CA_PATH, None)
    assert run_in_bash(recipe, tmp_path, "source")["FAL_KEY"] == DUMMY_KEY == "local:local"
    assert "Authorization" not in recipe


def test_without_tls_only_the_key_is_set(tmp_path: Path) -> None:
    """Hosts that cannot be reached would be worse than none; the reason stands in their place."""
    recipe = client_env("box", 8000, None, CA_PATH, "id:secret")
    assert run_in_bash(recipe, tmp_path, "source") == {"FAL_KEY": "id:secret"}
    assert "fal_client always uses https" in recipe
    assert "http://box:8000/api/fal/proxy" in recipe


@pytest.mark.parametrize(
    ("host", "ca_path", "key"),
    [
        ("box\ntouch pwned", CA_PATH, None),
        ("box", Path("/data\rtouch pwned"), None),
        ("box", CA_PATH, "id:secret\ntouch pwned"),
    ],
)
def test_line_breaks_are_refused(host: str, ca_path: Path, key: str | None) -> None:
    """One would end the comment that the value stands in, and start a command."""
    with pytest.raises(ConfigurationError, match="cannot be written into one line"):
        client_env(host, 8000, 8443, ca_path, key)


def test_curl_line_is_one_command() -> None:
    """The shell splits it into the words that curl should get, whatever the key holds."""
    (line,) = comment_after(client_env("box", 8000, 8443, CA_PATH, NASTY), "curl:")
    words = shlex.split(line)
    assert words[:3] == ["curl", "http://box:8000/fal-ai/flux-2", "-d"]
    assert json.loads(words[3]).keys() == {"prompt"}
    assert words[-1] == f"Authorization: Key {NASTY}"


def test_recipe_for_both_bundles_joins_them(tmp_path: Path) -> None:
    """The commented way to keep the public CAs does what it says when its `#` is removed."""
    ours = tmp_path / "a folder" / "ca.pem"
    ours.parent.mkdir()
    ours.write_text("OURS\n")
    recipe = client_env("box", 8000, 8443, ours, None)
    (tmp_path / "public.pem").write_text("PUBLIC\n")
    joining = [line for line in recipe.splitlines() if line.startswith("#   ")][:2]
    script = "\n".join(line.removeprefix("#") for line in joining)
    done = subprocess.run(
        ["bash", "-euc", f'python() {{ echo public.pem; }}; {script}; echo "$SSL_CERT_FILE"'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    bundle = Path(done.stdout.splitlines()[-1])
    assert bundle.read_text() == "PUBLIC\nOURS\n"


def test_javascript_snippet_is_valid(tmp_path: Path) -> None:
    """Node parses it, with a key that needs escaping; the import alone is left out."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    recipe = client_env("fd00::2", 8000, 8443, CA_PATH, NASTY)
    lines = [line for line in comment_after(recipe, "JavaScript") if "import" not in line]
    program = tmp_path / "snippet.mjs"
    program.write_text(
        "const createFalClient = (given) => given;\n"
        + "\n".join(lines)
        + "\nconsole.log(JSON.stringify(fal));\n"
    )
    done = subprocess.run([node, program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {
        "credentials": NASTY,
        "proxyUrl": {"url": "http://[fd00::2]:8000/api/fal/proxy", "when": "always"},
    }
