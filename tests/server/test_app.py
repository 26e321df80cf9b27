"""The wiring: no torch in the gateway, and refusals to start that say why."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from server.app import create_app
from server.errors import ConfigurationError
from server.gateway import Gateway, is_loopback, make_keyring
from server.keys import Caller
from server.settings import Settings
from server.tickets import Tickets


def test_importing_the_app_loads_no_torch() -> None:
    """The gateway process stays free of torch and everything that brings it."""
    script = (
        "import sys, server.app, server.cli\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("safety", ["required", "optional"])
def test_without_a_checker_it_starts_only_when_told_off(
    make_settings: Callable[..., Settings], safety: str
) -> None:
    """It refuses rather than report `false` for images that nobody looked at."""
    with pytest.raises(ConfigurationError, match="FLUX2_SAFETY=off"):
        create_app(make_settings(safety=safety))


def test_without_a_model_it_needs_no_word_on_safety(tmp_path: Path) -> None:
    """The demonstration checkpoint alone is unchecked by default; it has a checker if asked."""
    assert Gateway(Settings(data_dir=tmp_path / "data")).checker is None
    checker = Gateway(Settings(data_dir=tmp_path / "data", safety="required")).checker
    assert checker is not None
    assert checker.unsafe == ("nsfw",)


def test_another_key_of_the_settings_ends_the_tokens_of_the_one_before(
    make_settings: Callable[..., Settings],
) -> None:
    """A restart with the same one ends none."""

    def start(api_key: str) -> Tickets:
        tickets = Gateway(make_settings(api_key=api_key)).tickets
        tickets.load()
        return tickets

    token, _ = start("the old key").issue_token(Caller())
    assert start("the old key").read_token(token) == Caller()
    assert start("the new key").read_token(token) is None


@pytest.mark.anyio
async def test_readiness_names_the_checker(
    make_settings: Callable[..., Settings], demo_model: Path
) -> None:
    """Its folder, kind and labels, or nothing where images are not checked."""
    told = []
    for changes in ({}, {"safety": "optional", "model": demo_model}):
        app = create_app(make_settings(**changes))
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            ready = (await client.get("/health/ready")).json()
            told.append((ready["safety"], ready["safety_checker"]))
    assert told == [
        ("off", None),
        ("optional", "safety_checker (ViTForImageClassification: nsfw)"),
    ]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104  (judged, not bound to)
        ("::", False),
        ("", False),
        ("192.168.1.2", False),
        ("box.local", False),
    ],
)
def test_who_can_reach_an_address(host: str, expected: bool) -> None:
    """Anything but this machine's own addresses is taken for the network."""
    assert is_loopback(host) == expected


def test_without_a_key_the_network_is_refused(make_settings: Callable[..., Settings]) -> None:
    """Both ways out are named, and each of them works; loopback needs none."""
    with pytest.raises(ConfigurationError, match=r"keys create .* FLUX2_ALLOW_ANONYMOUS=1"):
        create_app(make_settings(host="::"))
    assert not make_keyring(make_settings(host="::", allow_anonymous=True)).has_keys
    assert make_keyring(make_settings(host="::", api_key="any")).has_keys
    assert not make_keyring(make_settings()).has_keys


@pytest.mark.anyio
async def test_without_a_decoder_the_rest_works(make_settings: Callable[..., Settings]) -> None:
    """A limit too small for the decoder costs edits alone, not the server."""
    app = create_app(make_settings(decode_memory_bytes=1))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        made = await client.post("/fal-ai/flux-2", json={"prompt": "now", "seed": 1})
        assert made.status_code == 200
        ready = await client.get("/health/ready")
    assert ready.json()["status"] == "ready"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "none"),
        ({"fetch_allow": ("10.0.0.0/8",)}, "listed ones"),
        ({"webhook_allow": ("hooks.lan",)}, "listed ones"),
    ],
)
async def test_readiness_tells_of_a_hole_in_the_guard(
    make_settings: Callable[..., Settings], changes: dict[str, tuple[str, ...]], told: str
) -> None:
    """That requests may lead into the operator's own network is seen without reading settings."""
    app = create_app(make_settings(**changes))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        assert (await client.get("/health/ready")).json()["private_targets"] == told
