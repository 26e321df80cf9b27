"""What `flux2-serve client-env` prints, read back by the programs that it is for."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.client_env import DUMMY_KEY, Box, Mode, client_env
from server.errors import ConfigurationError
from server.hosts import FAL_HOSTS
from server.machine import is_address, machine_names

VARIABLES = (
    *("FAL_RUN_HOST", "FAL_QUEUE_RUN_HOST", "SSL_CERT_FILE", "FAL_KEY", "HTTPS_PROXY"),
    *("https_proxy", "NO_PROXY", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("NODE_EXTRA_CA_CERTS", "NODE_USE_ENV_PROXY"),
)
TRUST = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
CA_PATH = Path("/data/tls/ca.pem")
NASTY = 'it\'s a "$HOME" `touch pwned` $(touch pwned) \\ ; # !'


def run_in_bash(recipe: str, folder: Path, how: str, **env: str) -> dict[str, str]:
    """Let bash, with `env`, take the recipe in by `source` or `eval`, and dump our variables."""
    (folder / "recipe.sh").write_text(recipe)
    script = {"source": ". ./recipe.sh", "eval": 'eval "$(cat recipe.sh)"'}[how]
    done = subprocess.run(
        ["bash", "--norc", "-euc", f"{script}; env -0"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **env},
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
    recipe = client_env(Box("box", 8000, 8443, CA_PATH, "id:secret"))
    assert run_in_bash(recipe, tmp_path, how) == {
        "FAL_RUN_HOST": "box:8443",
        "FAL_QUEUE_RUN_HOST": "box:8443/queue",
        "SSL_CERT_FILE": "/data/tls/ca.pem",
        "FAL_KEY": "id:secret",
    }


@pytest.mark.parametrize("how", ["source", "eval"])
def test_no_value_can_break_out_of_its_quotes(tmp_path: Path, how: str) -> None:
    """Spaces, quotes and substitutions arrive as they are, and nothing of them is executed."""
    recipe = client_env(Box("box", 8000, 8443, Path("/data") / NASTY / "ca.pem", NASTY))
    found = run_in_bash(recipe, tmp_path, how)
    assert found["SSL_CERT_FILE"] == f"/data/{NASTY}/ca.pem"
    assert found["FAL_KEY"] == NASTY


@pytest.mark.parametrize("host", ["fd00::2", "[fd00::2]"])
def test_ipv6_addresses_are_bracketed_once(tmp_path: Path, host: str) -> None:
    """A port after a bare IPv6 address would be read as part of it."""
    recipe = client_env(Box(host, 8000, 8443, CA_PATH, None))
    assert run_in_bash(recipe, tmp_path, "source")["FAL_RUN_HOST"] == "[fd00::2]:8443"
    assert "http://[fd00::2]:8000/api/fal/proxy" in recipe


def test_server_without_a_key_gets_a_dummy(tmp_path: Path) -> None:
    """Without one, fal's Python client refuses to send anything; curl does not need it."""
    recipe = client_env(Box("box", 8000, 8443, CA_PATH, None))
    assert run_in_bash(recipe, tmp_path, "source")["FAL_KEY"] == DUMMY_KEY == "local:local"
    assert "Authorization" not in recipe


def test_without_tls_only_the_key_is_set(tmp_path: Path) -> None:
    """Hosts that cannot be reached would be worse than none; the reason stands in their place."""
    recipe = client_env(Box("box", 8000, None, CA_PATH, "id:secret"))
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
        client_env(Box(host, 8000, 8443, ca_path, key))


def test_curl_line_is_one_command() -> None:
    """The shell splits it into the words that curl should get, whatever the key holds."""
    (line,) = comment_after(client_env(Box("box", 8000, 8443, CA_PATH, NASTY)), "curl:")
    words = shlex.split(line)
    assert words[:3] == ["curl", "http://box:8000/fal-ai/flux-2", "-d"]
    assert json.loads(words[3]).keys() == {"prompt"}
    assert words[-1] == f"Authorization: Key {NASTY}"


def test_recipe_for_both_bundles_joins_them(tmp_path: Path) -> None:
    """The commented way to keep the public CAs does what it says when its `#` is removed."""
    ours = tmp_path / "a folder" / "ca.pem"
    ours.parent.mkdir()
    ours.write_text("OURS\n")
    recipe = client_env(Box("box", 8000, 8443, ours, None))
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
    recipe = client_env(Box("fd00::2", 8000, 8443, CA_PATH, NASTY))
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


@pytest.mark.parametrize("how", ["source", "eval"])
def test_proxy_recipe_sets_the_proxy_and_nothing_of_fal_s(tmp_path: Path, how: str) -> None:
    """Hosts of another recipe go, whichever spelling a program reads, and nothing is executed."""
    ca_path = Path("/data") / NASTY / "ca.pem"
    box = Box("fd00::2", 8000, 8443, ca_path, NASTY, connect_port=8081)
    recipe = client_env(box, Mode.PROXY)
    assert run_in_bash(recipe, tmp_path, how, FAL_RUN_HOST="old", FAL_QUEUE_RUN_HOST="old") == {
        "HTTPS_PROXY": "http://[fd00::2]:8081",
        "https_proxy": "http://[fd00::2]:8081",
        "FAL_KEY": NASTY,
        "NODE_USE_ENV_PROXY": "1",
        **dict.fromkeys(TRUST, str(ca_path)),
    }
    (line,) = comment_after(recipe, "curl:")
    words = shlex.split(line)
    assert words[:5] == ["curl", "--proxy", "http://[fd00::2]:8081", "--cacert", str(ca_path)]
    assert words[5] == "https://fal.run/fal-ai/flux-2"


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, "images.example"), ({"NO_PROXY": "a,b"}, "images.example,a,b")],
)
def test_a_public_url_is_reached_past_the_proxy(
    tmp_path: Path, before: dict[str, str], after: str
) -> None:
    """The proxy would refuse the URLs in answers, which the operator made point elsewhere."""
    box = Box("box", 8000, 8443, CA_PATH, None, connect_port=8081, public_host="images.example")
    found = run_in_bash(client_env(box, Mode.PROXY), tmp_path, "source", **before)
    assert (found["NO_PROXY"], found["no_proxy"]) == (after, after)


@pytest.mark.parametrize(("connect_port", "tls_port"), [(None, 8443), (0, 8443), (8081, None)])
def test_without_a_proxy_the_recipe_says_how_to_get_one(
    tmp_path: Path, connect_port: int | None, tls_port: int | None
) -> None:
    """A proxy that is not there would cut the program off from everything."""
    box = Box("box", 8000, tls_port, CA_PATH, None, connect_port=connect_port)
    recipe = client_env(box, Mode.PROXY)
    assert run_in_bash(recipe, tmp_path, "source") == {"FAL_KEY": DUMMY_KEY}
    assert "FLUX2_CONNECT_PORT=8081" in recipe


@pytest.mark.parametrize(
    ("host", "address"), [("10.1.2.3", "10.1.2.3"), ("[fd00::2]", "fd00::2"), ("localhost", None)]
)
def test_hosts_recipe_maps_every_name(tmp_path: Path, host: str, address: str | None) -> None:
    """The printed command writes one line for each of fal's names, back-up domains included."""
    recipe = client_env(Box(host, 8000, 443, CA_PATH, "id:secret"), Mode.HOSTS)
    found = run_in_bash(recipe, tmp_path, "source", FAL_RUN_HOST="old")
    assert found == {"FAL_KEY": "id:secret", **dict.fromkeys(TRUST, str(CA_PATH))}
    lines = hosts_lines(recipe)
    assert lines == [f"{address or '127.0.0.1'} {line.split()[1]}" for line in lines]
    assert {line.split()[1] for line in lines} == set(FAL_HOSTS)
    assert "nft" not in recipe


def hosts_lines(recipe: str) -> list[str]:
    """Run the recipe's command up to where it would ask for more rights."""
    (command,) = [line.removeprefix("#") for line in recipe.splitlines() if "printf" in line]
    command, _, rest = command.partition("|")
    assert rest == " sudo tee -a /etc/hosts"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_hosts_recipe_says_how_to_get_the_port() -> None:
    """A hosts file carries none, so the one that https has must lead to ours."""
    recipe = client_env(Box("10.1.2.3", 8000, 8443, CA_PATH, None), Mode.HOSTS)
    assert "FLUX2_TLS_PORT=443" in recipe
    assert recipe.count("tcp dport 443 redirect to :8443") == 2


def test_hosts_recipe_needs_tls_and_an_address(tmp_path: Path) -> None:
    """Without TLS the names lead nowhere; a name in a hosts file is no address."""
    recipe = client_env(Box("10.1.2.3", 8000, None, CA_PATH, None), Mode.HOSTS)
    assert run_in_bash(recipe, tmp_path, "source") == {"FAL_KEY": DUMMY_KEY}
    with pytest.raises(ConfigurationError, match="--host"):
        client_env(Box("box", 8000, 443, CA_PATH, None), Mode.HOSTS)


@pytest.mark.parametrize("mode", Mode)
def test_the_command_prints_each_recipe(tmp_path: Path, mode: Mode) -> None:
    """From the server's own settings, for a box that listens on all its addresses."""
    env = {
        "FLUX2_HOST": "0.0.0.0",  # noqa: S104  (nothing is bound)
        "FLUX2_TLS_PORT": "443",
        "FLUX2_CONNECT_PORT": "8081",
        "FLUX2_DATA_DIR": str(tmp_path),
    }
    shown = CliRunner().invoke(app, ["client-env", "--mode", mode.value], env=env)
    assert shown.exit_code == 0, shown.output
    ca_path = shlex.quote(str(tmp_path / "tls" / "ca.pem"))
    assert f"export SSL_CERT_FILE={ca_path}" in shown.output
    wanted = {
        Mode.ENV: "FAL_QUEUE_RUN_HOST=",
        Mode.PROXY: f"HTTPS_PROXY=http://{machine_names()[0]}:8081",
        Mode.HOSTS: f"{next(filter(is_address, machine_names()))} %s",
    }
    assert wanted[mode] in shown.output
