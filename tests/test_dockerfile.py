"""What can be known of Dockerfile.cuda without building it: its parts are run where they can be."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipelines.demonstration import DEMO_CHECKPOINT
from server.errors import ConfigurationError
from server.gateway import KEYS_FOLDER, make_keyring
from server.keyfile import KeyFile, KeyLimits
from server.settings import load_settings

ROOT = Path(__file__).parents[1]
SECRET_WORDS = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True)
class Instruction:
    """One instruction of the file, with its continued lines joined."""

    word: str
    rest: str


def parse(text: str) -> list[Instruction]:
    """Join continued lines, as the builder does: comment lines between them do not count."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [
        Instruction(word.upper(), rest.strip())
        for word, _, rest in (line.strip().partition(" ") for line in joined.splitlines())
        if word
    ]


@pytest.fixture(scope="module")
def dockerfile() -> list[Instruction]:
    """Parse the whole file."""
    return parse((ROOT / "Dockerfile.cuda").read_text())


@pytest.fixture(scope="module")
def image(dockerfile: list[Instruction]) -> list[Instruction]:
    """Return the last stage, which is what runs."""
    last = max(i for i, item in enumerate(dockerfile) if item.word == "FROM")
    return dockerfile[last:]


def rest_of(instructions: list[Instruction], word: str) -> list[str]:
    """Return what follows each instruction of one kind."""
    return [item.rest for item in instructions if item.word == word]


def environment(instructions: list[Instruction]) -> dict[str, str]:
    """Return the variables that ENV sets."""
    words = [word for rest in rest_of(instructions, "ENV") for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def context_sources(instructions: list[Instruction]) -> list[str]:
    """Return what COPY and ADD take from the build context, not from another stage."""
    copies = [*rest_of(instructions, "COPY"), *rest_of(instructions, "ADD")]
    words = [shlex.split(rest) for rest in copies]
    return [
        source
        for arguments in words
        if not any(word.startswith("--from=") for word in arguments)
        for source in [word for word in arguments if not word.startswith("--")][:-1]
    ]


def test_parser_joins_lines_around_comments() -> None:
    """The other tests are worth what this small parser is worth."""
    text = "# top\nFROM a AS b\nENV A=1 \\\n    # why\n    B='2 3'\nCMD [\"x\"]\n"
    parsed = parse(text)
    assert [item.word for item in parsed] == ["FROM", "ENV", "CMD"]
    assert environment(parsed) == {"A": "1", "B": "2 3"}


def test_every_copied_source_exists_and_is_sent(dockerfile: list[Instruction]) -> None:
    """The ignore file lets through exactly what is copied, and so no key or weight by chance."""
    sources = context_sources(dockerfile)
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(sources)


def test_packages_of_the_wheel_are_copied(dockerfile: list[Instruction]) -> None:
    """A package that is added to the wheel must be added to the image."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= set(context_sources(dockerfile))


def test_the_demonstration_checkpoint_is_in_the_image(
    dockerfile: list[Instruction], image: list[Instruction]
) -> None:
    """It is copied with its package, nothing of it is held back, and one word serves it."""
    files = [path for path in DEMO_CHECKPOINT.rglob("*") if path.is_file()]
    names = [path.relative_to(ROOT).as_posix() for path in files]
    assert "pipelines/demo_checkpoint/model_index.json" in names
    sources = context_sources(dockerfile)
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and rule != "*" and rule[0] not in "#!"]
    held_back = [rule.removeprefix("**/") for rule in rules]
    for name in names:
        assert any(name.startswith(f"{source}/") for source in sources)
        parts = name.split("/")
        assert not any(fnmatch.filter(parts, rule) for rule in held_back)
    told = load_settings(environ={**environment(image), "FLUX2_MODEL": "none"})
    assert (told.model, told.safety) == (DEMO_CHECKPOINT, "off")


def test_runs_as_a_fixed_user_that_is_not_root(image: list[Instruction]) -> None:
    """Kubernetes can check a number only, and the volume's owner must not change."""
    last = rest_of(image, "USER")[-1]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last)
    assert any(f"--uid {last.split(':')[0]}" in run for run in rest_of(image, "RUN"))


def test_is_offline_at_run_time(image: list[Instruction]) -> None:
    """Nothing in the image looks for a network or reports home."""
    variables = environment(image)
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    assert {name: variables.get(name) for name in offline} == dict.fromkeys(offline, "1")


def test_server_takes_the_settings_of_the_image(image: list[Instruction]) -> None:
    """A misspelt FLUX2_ name would be refused at start; ports and volume agree with them."""
    settings = load_settings(environ=environment(image))
    assert (settings.model, settings.data_dir) == (Path("/model"), Path("/data"))
    assert settings.host == "0.0.0.0"  # noqa: S104  (inside a container, ports are published)
    assert rest_of(image, "EXPOSE") == [f"{settings.port} {settings.tls_port}"]
    assert json.loads(rest_of(image, "VOLUME")[0]) == [str(settings.data_dir)]
    caches = [value for name, value in environment(image).items() if "CACHE" in name]
    assert len(caches) == 2
    assert all(value.startswith("/data/cache/") for value in caches)


def test_the_image_is_not_open_by_oversight(image: list[Instruction], tmp_path: Path) -> None:
    """It listens to the network, so it wants a key, or to be told that everybody may come."""
    variables = environment(image)
    assert "FLUX2_ALLOW_ANONYMOUS" not in variables
    closed = load_settings({"data_dir": tmp_path}, variables)
    with pytest.raises(ConfigurationError, match="FLUX2_ALLOW_ANONYMOUS=1"):
        make_keyring(closed)
    make_keyring(load_settings({"data_dir": tmp_path}, {**variables, "FLUX2_ALLOW_ANONYMOUS": "1"}))
    KeyFile(tmp_path / KEYS_FOLDER).create("me", KeyLimits(), 1.0)
    assert make_keyring(closed).has_keys


def test_gpu_and_compiler_are_there(image: list[Instruction]) -> None:
    """The container toolkit reads the two variables; Triton compiles at run time."""
    variables = environment(image)
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert set(variables["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility"}
    assert variables["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    (install,) = [run for run in rest_of(image, "RUN") if "apt-get install" in run]
    assert {"gcc", "g++", "libc6-dev"} <= set(install.split())


def test_no_secret_is_baked_in(dockerfile: list[Instruction]) -> None:
    """Layers can be read by everybody who can pull the image."""
    arguments = [rest.partition("=")[0] for rest in rest_of(dockerfile, "ARG")]
    assert [
        name for name in [*environment(dockerfile), *arguments] if SECRET_WORDS.search(name)
    ] == []


def test_requirements_are_the_projects_own(dockerfile: list[Instruction], tmp_path: Path) -> None:
    """Run the line that writes them; they are installed under the tested versions, as wheels."""
    (command,) = [run for run in rest_of(dockerfile, "RUN") if "> requirements.txt" in run]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env={"PATH": path}, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    expected = project["dependencies"] + extras["gpu"] + extras["c2pa"]
    assert (tmp_path / "requirements.txt").read_text().splitlines() == expected
    (install,) = [run for run in rest_of(dockerfile, "RUN") if "-r /" in run]
    assert re.search(r"-c \S+/constraints\.txt", install)


class _Health(BaseHTTPRequestHandler):
    """Answers as the gateway does: by the path, with the status that the test wants."""

    status = 200

    def do_GET(self) -> None:
        """Answer `/health/live`; every other path is unknown."""
        self.send_response(self.status if self.path == "/health/live" else 404)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Stay silent."""


@pytest.fixture
def gateway() -> Iterator[tuple[type[_Health], int]]:
    """Serve `/health/live` on a free port."""

    class Handler(_Health):
        """A class of its own, so that a test can set its status."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield Handler, server.server_port
        server.shutdown()
        thread.join()


def test_health_check_follows_the_gateway(
    image: list[Instruction], gateway: tuple[type[_Health], int]
) -> None:
    """Run its command: only 200 is healthy, and a web proxy in the environment is not asked."""
    (check,) = rest_of(image, "HEALTHCHECK")
    options, _, command = check.partition("CMD ")
    assert "--start-period=" in options
    program, *arguments = json.loads(command)
    assert program == "python"
    handler, port = gateway
    nowhere = "http://127.0.0.1:9"

    def status(check_port: int) -> int:
        variables = {"FLUX2_PORT": str(check_port), "http_proxy": nowhere, "HTTP_PROXY": nowhere}
        done = subprocess.run(
            [sys.executable, *arguments], env=variables, capture_output=True, check=False
        )
        return done.returncode

    assert status(port) == 0
    handler.status = 503
    assert status(port) == 1
    assert status(9) == 1


def test_entry_command_runs(image: list[Instruction]) -> None:
    """The installed program takes the image's arguments; exec form, so that signals reach it."""
    program, *arguments = json.loads(rest_of(image, "ENTRYPOINT")[0])
    installed = Path(sys.executable).parent / program
    # Without the caller's environment, in which some CI systems ask for coloured output.
    done = subprocess.run(
        [installed, *arguments, "--help"],
        env={"PATH": os.environ["PATH"], "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--data-dir" in done.stdout
    assert rest_of(image, "STOPSIGNAL") == ["SIGTERM"]
