"""Settings: three sources, one frozen object, and mistakes that name their cure."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipelines.demonstration import DEMO_CHECKPOINT
from pipelines.types import Model
from server.errors import ConfigurationError
from server.placement import Place
from server.settings import Settings, load_settings


def test_defaults_need_nothing() -> None:
    """Without any source every setting has its documented default."""
    settings = load_settings({}, {})
    assert (settings.host, settings.port, settings.tls_port) == ("127.0.0.1", 8000, 8443)
    assert settings.model == DEMO_CHECKPOINT
    assert settings.sync_result_seconds == 360


def test_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    """The stronger source wins, key by key; a flag that was not given is none."""
    config = tmp_path / "flux2.toml"
    config.write_text('port = 1\nhost = "file"\nmodel = "/from/file"\ndtype = "float32"\n')
    environ = {"FLUX2_CONFIG": str(config), "FLUX2_HOST": "env", "FLUX2_PORT": "2", "PATH": "x"}
    settings = load_settings({"port": 3, "data_dir": None}, environ)
    assert (settings.port, settings.host, settings.dtype) == (3, "env", "float32")
    assert settings.model == Path("/from/file")
    assert settings.data_dir == Path("data")


def test_a_config_flag_beats_the_variable(tmp_path: Path) -> None:
    """The file itself may be named by a flag too."""
    for name, port in (("a.toml", 11), ("b.toml", 12)):
        (tmp_path / name).write_text(f"port = {port}\n")
    environ = {"FLUX2_CONFIG": str(tmp_path / "a.toml")}
    assert load_settings({"config": tmp_path / "b.toml"}, environ).port == 12


@pytest.mark.parametrize(
    ("environ", "toml", "expected"),
    [
        ({"FLUX2_MODLE": "x"}, "", "unknown setting FLUX2_MODLE; did you mean FLUX2_MODEL?"),
        ({}, "tls_prot = 1", "unknown setting tls_prot; did you mean tls_port?"),
        ({"FLUX2_PORT": "http"}, "", "port: "),
        ({"FLUX2_PORT": "65536"}, "", "port: Input should be less than or equal to 65535"),
        ({"FLUX2_SAFETY": "maybe"}, "", "safety: "),
        ({}, "port = ", "not valid TOML"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, environ: dict[str, str], toml: str, expected: str
) -> None:
    """Every mistake is an error with its place, and an unknown key names the nearest known."""
    config = tmp_path / "flux2.toml"
    config.write_text(toml)
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"config": config}, environ)
    assert expected in str(caught.value)


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    """A config file that was asked for must be there."""
    with pytest.raises(ConfigurationError, match="none.toml: cannot be read"):
        load_settings({"config": tmp_path / "none.toml"}, {})


def test_only_the_demonstration_checkpoint_is_served_unchecked_by_default(tmp_path: Path) -> None:
    """By whatever path it is given; a word on safety holds for it too, and a link elsewhere not."""
    link = tmp_path / "link"
    link.symlink_to(DEMO_CHECKPOINT)
    by_detour = DEMO_CHECKPOINT.parent / "tools" / ".." / DEMO_CHECKPOINT.name
    for model in (DEMO_CHECKPOINT, by_detour, link):
        assert load_settings({"model": model}, {}).safety == "off"
        assert load_settings({"model": model}, {"FLUX2_SAFETY": "required"}).safety == "required"
    for model in (tmp_path, DEMO_CHECKPOINT.parent, DEMO_CHECKPOINT / "vae"):
        assert load_settings({"model": model}, {}).safety == "required"


@pytest.mark.parametrize("word", ["none", "None", "NONE"])
def test_none_is_the_demonstration_checkpoint(word: str) -> None:
    """So that an image whose variables name a folder can be told to use its own, by any source."""
    assert load_settings({"model": Path(word)}, {}).model == DEMO_CHECKPOINT
    assert load_settings({}, {"FLUX2_MODEL": word}).model == DEMO_CHECKPOINT
    assert Settings(model=None).model == DEMO_CHECKPOINT


@pytest.mark.parametrize("name", ["model", "port"])
def test_a_mistake_is_told_once(name: str) -> None:
    """That the default of `safety` could not be chosen because of it is no second one."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings({name: ()}, {})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{name}: ")


@pytest.mark.parametrize("word", ["none", "None", "NONE"])
def test_none_switches_tls_off(word: str) -> None:
    """`none` means no HTTPS port, by flag and by variable."""
    assert load_settings({"tls_port": word}, {}).tls_port is None
    assert load_settings({}, {"FLUX2_TLS_PORT": word}).tls_port is None


def test_settings_are_frozen_and_hide_the_key() -> None:
    """Nobody changes a setting later, and printing them does not show the key."""
    settings = load_settings({}, {"FLUX2_API_KEY": "id:secret"})
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    assert "id:secret" not in repr(settings)


def test_the_environment_of_the_process_is_read_only_when_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Settings made directly, as tests do, do not look around."""
    monkeypatch.setenv("FLUX2_PORT", "4444")
    assert Settings().port == 8000
    assert load_settings().port == 4444


DEV, K4, K9 = Model.DEV, Model.KLEIN_4B, Model.KLEIN_9B


@pytest.mark.parametrize(
    ("environ", "folders"),
    [
        ({}, {DEV: DEMO_CHECKPOINT}),
        ({"FLUX2_MODEL": ""}, {DEV: DEMO_CHECKPOINT}),
        ({"FLUX2_MODEL": "/d"}, {DEV: Path("/d")}),
        ({"FLUX2_MODELS": "klein-4b=/k"}, {K4: Path("/k")}),
        ({"FLUX2_MODEL": "", "FLUX2_MODELS": "klein-4b=/k"}, {K4: Path("/k")}),
        (
            {"FLUX2_MODEL": "/d", "FLUX2_MODELS": "klein-9b=/n, klein-4b=/a=b"},
            {DEV: Path("/d"), K9: Path("/n"), K4: Path("/a=b")},
        ),
        ({"FLUX2_MODELS": "dev=/d"}, {DEV: Path("/d")}),
        (
            {"FLUX2_MODEL": "none", "FLUX2_MODELS": "klein-4b=/k"},
            {DEV: DEMO_CHECKPOINT, K4: Path("/k")},
        ),
    ],
)
def test_which_models_there_are(environ: dict[str, str], folders: dict[Model, Path]) -> None:
    """A box without [dev] is told so by naming others; an image's own default can be taken back."""
    settings = load_settings({}, environ)
    assert settings.folders == folders
    demonstration = list(folders.values()) == [DEMO_CHECKPOINT]
    assert settings.safety == ("off" if demonstration else "required")


def test_models_of_a_file(tmp_path: Path) -> None:
    """In TOML they are a table."""
    path = tmp_path / "box.toml"
    path.write_text('[models]\nklein-4b = "/k"\n', encoding="utf-8")
    assert load_settings({"config": path}, {}).folders == {K4: Path("/k")}


def test_which_device_serves_which_model() -> None:
    """A pinned one what it is kept for, the others all, in the order of the folders."""
    environ = {
        "FLUX2_MODEL": "/d",
        "FLUX2_MODELS": "klein-4b=/k,klein-9b=/n",
        "FLUX2_DEVICES": "cuda:0=dev, cuda:1=klein-9b+klein-4b, cpu",
    }
    assert load_settings({}, environ).places == (
        Place("cuda:0", (DEV,)),
        Place("cuda:1", (K9, K4)),
        Place("cpu", (DEV, K4, K9)),
    )


@pytest.mark.parametrize(
    ("environ", "name", "words"),
    [
        ({"FLUX2_MODELS": "klein=/k"}, "models", "klein-9b-base"),
        ({"FLUX2_MODELS": "/k"}, "models", "is not NAME=FOLDER"),
        ({"FLUX2_MODELS": "klein-4b="}, "models", "is not NAME=FOLDER"),
        ({"FLUX2_MODELS": "klein-4b=/k,klein-4b=/l"}, "models", "two folders"),
        ({"FLUX2_MODEL": "/d", "FLUX2_MODELS": "dev=/e"}, "model", "leave one out"),
        ({"FLUX2_DEVICES": "cuda:0=klein-4b"}, "devices", "klein-4b has no folder"),
        ({"FLUX2_DEVICES": "=dev"}, "devices", "names no device"),
        ({"FLUX2_DEVICES": "cuda,cuda:0"}, "devices", "cuda:0 is named twice"),
        (
            {"FLUX2_MODELS": "dev=/d,klein-4b=/k", "FLUX2_DEVICES": "cuda=dev"},
            "devices",
            "no device serves klein-4b",
        ),
    ],
)
def test_mistakes_about_models(environ: dict[str, str], name: str, words: str) -> None:
    """Each is told with its place, and no other setting is repeated with it."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, {**environ, "FLUX2_API_KEY": "id:secret"})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{name}: ")
    assert words in line
    assert "secret" not in line
