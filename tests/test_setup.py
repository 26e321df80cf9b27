"""`scripts/setup`, run for real on a small project, and the versions that it installs."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contract.conftest import skip_or_fail

ROOT = Path(__file__).parents[1]
JS = ROOT / "tests" / "contract" / "js"
CLIENTS = Path("tests") / "contract" / "clients" / "requirements"

PYPROJECT = """\
[build-system]
requires = ["tinydep"]
build-backend = "backend"
backend-path = ["."]
[project]
name = "small"
version = "1"
"""

# Editable wheels by hand, since a real build backend would have to come from somewhere. It needs
# `tinydep`, so that the isolated build must find packages in the wheelhouse too.
BACKEND = """\
import zipfile
import tinydep

WHEEL = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
METADATA = "Metadata-Version: 2.1\\nName: small\\nVersion: 1\\n"
EXTRA = "Provides-Extra: dev\\nRequires-Dist: tinydep; extra == 'dev'\\n"

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "small-1-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        wheel.writestr("small-1.dist-info/WHEEL", WHEEL)
        wheel.writestr("small-1.dist-info/METADATA", METADATA + EXTRA)
        wheel.writestr("small-1.dist-info/RECORD", "")
    return name
"""


def pins() -> dict[str, str]:
    """Read constraints.txt; raises when a line is not an exact version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): exact for name, exact in found}


def make_wheel(folder: Path, exact: str) -> None:
    """Write a wheel of `tinydep` that knows its version."""
    folder.mkdir(exist_ok=True)
    info = f"tinydep-{exact}.dist-info"
    files = {
        "tinydep.py": f"version = {exact!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinydep\nVersion: {exact}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
        record += f"{name},sha256={digest.rstrip('=')},{len(text)}\n"
    with zipfile.ZipFile(folder / f"tinydep-{exact}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", record)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a small project with our `scripts/setup`, in a folder whose name has a space."""
    folder = tmp_path / "check out"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup", folder / "scripts")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "constraints.txt").write_text("tinydep==1.0\n")
    return folder


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    """Make a wheelhouse with the tested version of the dependency, and a newer one."""
    folder = tmp_path / "wheel house"
    make_wheel(folder, "1.0")
    make_wheel(folder, "2.0")
    made_for = 'import sys, sysconfig; print("Python %d.%d on %s" % (*sys.version_info[:2], '
    made_for += "sysconfig.get_platform()))"
    done = subprocess.run([sys.executable, "-c", made_for], capture_output=True, check=True)
    (folder / "made-for").write_bytes(done.stdout)
    return folder


def run_setup(
    checkout: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `scripts/setup` with this interpreter, without npm, and with an index that is not there.

    Anything that asks the index therefore fails.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHON": sys.executable,
        "NPM": "no-such-npm",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
    }
    return subprocess.run(
        [checkout / "scripts" / "setup", *arguments],
        cwd=checkout.parent,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def installed(checkout: Path) -> str:
    """Ask the environment which `tinydep` it has."""
    python = str(checkout / ".venv" / "bin" / "python")
    command = [python, "-c", "import tinydep as t; print(t.version)"]
    return subprocess.check_output(command, text=True).strip()


def test_life_of_an_environment(checkout: Path, wheelhouse: Path) -> None:
    """Made from the wheelhouse alone, left alone while nothing changes, updated when a pin does.

    One test, because making an environment takes seconds.
    """
    elsewhere = checkout.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tinydep-1.0-py3-none-any.whl").write_text("a broken file")
    done = run_setup(checkout, "--from", wheelhouse.name, PIP_FIND_LINKS=str(elsewhere))
    assert done.returncode == 0, done.stderr
    assert "elsewhere" not in done.stdout
    assert installed(checkout) == "1.0", "not the tested version"
    assert "JavaScript client tests will be skipped" in done.stderr
    assert "no other clients in" in done.stderr

    stamp = checkout / ".venv" / ".setup-stamp"
    before = stamp.stat()
    done = run_setup(checkout, PYTHON="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stamp.stat().st_mtime_ns == before.st_mtime_ns

    (checkout / "constraints.txt").write_text("tinydep==2.0\n")
    assert run_setup(checkout).returncode != 0, "the new pin was not asked for at the index"
    assert not stamp.exists(), "a failed update must be tried again"
    assert run_setup(checkout, "--from", str(wheelhouse)).returncode == 0
    assert installed(checkout) == "2.0"


def test_other_clients_have_folders_of_their_own(checkout: Path, wheelhouse: Path) -> None:
    """Each from its own list and with its own versions, and the environment keeps its own."""
    (checkout / CLIENTS).mkdir(parents=True)
    (checkout / CLIENTS / "old.txt").write_text("tinydep==0.5\n")
    (checkout / CLIENTS / "new.txt").write_text("tinydep==2.0\n")
    make_wheel(wheelhouse / "clients", "0.5")
    make_wheel(wheelhouse / "clients", "2.0")
    done = run_setup(checkout, "--from", str(wheelhouse))
    assert done.returncode == 0, done.stderr
    folders = checkout / ".venv" / "clients"
    found = {path.name: (path / "tinydep.py").read_text() for path in folders.iterdir()}
    assert found == {"old": "version = '0.5'\n", "new": "version = '2.0'\n"}
    assert installed(checkout) == "1.0"

    (checkout / CLIENTS / "new.txt").write_text("tinydep==3.0\n")
    done = run_setup(checkout, "--from", str(wheelhouse))
    assert done.returncode == 1, "a changed list was not read again"
    assert "can be had" in done.stderr
    assert not (checkout / ".venv" / ".setup-stamp").exists()


def test_moved_environment_is_made_again(checkout: Path, wheelhouse: Path) -> None:
    """The scripts of a moved environment start an interpreter in the old place."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    moved = checkout.rename(checkout.with_name("moved"))
    done = run_setup(moved, "--from", str(wheelhouse))
    assert done.returncode == 0, done.stderr
    assert "replacing .venv" in done.stderr
    assert str(moved) in (moved / ".venv" / "bin" / "pip").read_text()


def test_wheelhouse_of_another_python_is_refused(checkout: Path, wheelhouse: Path) -> None:
    """By name, where pip would only say that it finds no version of some package."""
    (wheelhouse / "made-for").write_text("Python 2.7 on amiga\n")
    done = run_setup(checkout, "--from", str(wheelhouse))
    assert done.returncode == 1
    assert "was made for Python 2.7 on amiga, this is Python 3." in done.stderr
    assert not (checkout / ".venv").exists()


def test_old_or_missing_python_is_refused(checkout: Path) -> None:
    """The first line that a newcomer on an old system reads must be a clear one."""
    old = checkout / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = run_setup(checkout, PYTHON=str(old))
    assert done.returncode == 1
    assert "older than Python 3.11" in done.stderr
    assert "install Python 3.11 or newer" in run_setup(checkout, PYTHON="no-such-python").stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("arguments", [["--from"], ["--wheelhouse", ""], ["--form", "x"], [""]])
def test_wrong_arguments_change_nothing(checkout: Path, arguments: list[str]) -> None:
    """A misspelt option must not start an installation."""
    assert run_setup(checkout, *arguments).returncode in (1, 2)
    assert not (checkout / ".venv").exists()


def test_every_declared_dependency_is_pinned_within_its_range() -> None:
    """Extras too: a wheelhouse and the image are made from the same list."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for requirement in map(Requirement, project["dependencies"] + extras):
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_everything_that_is_needed_is_installed_as_pinned() -> None:
    """Whatever the requirements drag in; CUDA builds of torch bring libraries of their own."""
    cuda = re.compile(r"nvidia-|cuda-|triton$")
    found: dict[str, str] = {}
    seen: set[str] = set()
    ahead = [Requirement("flux2-serve[dev]")]
    while ahead:
        parent = ahead.pop()
        for requirement in map(Requirement, requires(parent.name) or ()):
            extras = ["", *parent.extras]
            name = canonicalize_name(requirement.name)
            wanted = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in extras
            )
            if wanted and not cuda.match(name) and str(requirement) not in seen:
                seen.add(str(requirement))
                ahead.append(requirement)
                found[name] = version(name).partition("+")[0]
    assert len(found) > 60
    assert {name: pins().get(name) for name in found} == found


def client_pins(path: Path) -> dict[str, str]:
    """Read a client's list; raises when a line is not an exact version."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    found = [line.split("==") for line in lines]
    return {canonicalize_name(name): exact for name, exact in found}


@pytest.mark.parametrize("path", sorted((ROOT / CLIENTS).iterdir()), ids=lambda path: path.stem)
def test_every_client_has_what_it_needs(path: Path) -> None:
    """Whatever its packages require is on its list, or in the environment that it stands before."""
    folder = Path(sys.prefix) / "clients" / path.stem
    if not folder.is_dir():
        skip_or_fail(f"{path.stem} is not installed: run scripts/setup")
    pinned = client_pins(path)
    here = {canonicalize_name(each.name): each for each in distributions(path=[str(folder)])}
    assert {name: each.version for name, each in here.items()} == pinned
    for distribution in here.values():
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                name = canonicalize_name(requirement.name)
                found = here[name].version if name in here else version(name)
                assert requirement.specifier.contains(found), (distribution.name, str(requirement))


def test_javascript_clients_are_locked_without_a_registry() -> None:
    """Exact versions, hashes for all, and no host: a mirror or a cache may deliver them."""
    package = json.loads((JS / "package.json").read_text())
    assert package["dependencies"]["@fal-ai/client"] == "1.10.1"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", exact) for exact in package["dependencies"].values())
    lock = json.loads((JS / "package-lock.json").read_text())["packages"]
    modules = {name: entry for name, entry in lock.items() if name}
    for name, exact in package["dependencies"].items():
        assert modules[f"node_modules/{name}"]["version"] == exact
    assert all(entry["integrity"].startswith("sha512-") for entry in modules.values())
    assert not any("resolved" in entry for entry in modules.values())
