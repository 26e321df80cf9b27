"""The operator's rules: when the server starts, whose images are checked, which prompts pass."""

import itertools
import json
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.types import Model, SafetyOptions
from server.catalogue import CATALOGUE
from server.denylist import DenyList
from server.errors import ConfigurationError, InputError, RequestError
from server.family.endpoint import Order
from server.files import FileStore
from server.gateway import make_runner
from server.inputs import InputPreparer
from server.jobs import Job
from server.keyfile import KeyFile, KeyLimits, SafetyRule
from server.keys import Caller
from server.loras import LoraFinder
from server.runners.messages import TO_RUNNER
from server.safety import (
    REFUSED,
    SafetyRules,
    describe_safety,
    find_checker,
    must_check,
    refused_reference,
    safety_options,
)
from server.settings import Settings, load_settings
from server.store import Store
from tests.server.stubs import Decoder, Web

RULES: tuple[SafetyRule, ...] = ("required", "optional", "off")
MakeSettings = Callable[..., Settings]


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Path:
    """Return a model folder with nothing but its checker, for a test to damage."""
    shutil.copytree(demo_model / "safety_checker", tmp_path / "model" / "safety_checker")
    return tmp_path / "model"


def _order(**fields: Any) -> Order:
    return CATALOGUE["fal-ai/flux-2"].parse({"prompt": "a fox", **fields})


@pytest.mark.parametrize("state", ["present", "absent", "corrupt"])
@pytest.mark.parametrize("safety", RULES)
def test_the_matrix_of_starting(
    make_settings: MakeSettings, model: Path, safety: SafetyRule, state: str
) -> None:
    """Off needs nothing; the other rules need a whole checker, and name the folder they want."""
    folder = model / "safety_checker"
    if state == "absent":
        shutil.rmtree(folder)
    if state == "corrupt":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    settings = make_settings(model=model, safety=safety)
    if safety == "off":
        assert find_checker(settings) is None
        assert safety_options(settings) is None
        assert describe_safety(settings, None).startswith("off; images are served unchecked")
    elif state == "present":
        checker = find_checker(settings)
        assert checker is not None
        assert checker.path == folder
        assert describe_safety(settings, checker) == (
            f"{safety}; images are checked by safety_checker (ViTForImageClassification: nsfw)"
        )
    else:
        with pytest.raises(ConfigurationError) as caught:
            find_checker(settings)
        told = str(caught.value)
        for words in (str(folder), f"FLUX2_SAFETY is {safety!r}", "FLUX2_SAFETY_MODEL", "=off"):
            assert words in told
        assert ("no such folder" if state == "absent" else "cut short") in told


def test_one_checker_looks_at_the_images_of_all_models(
    make_settings: MakeSettings, model: Path, tmp_path: Path
) -> None:
    """The first that lies in a model's folder; where there is none, all places are named."""
    folders = {Model.DEV: tmp_path / "dev", Model.KLEIN_4B: model}
    settings = make_settings(model=None, models=folders, safety="required")
    checker = find_checker(settings)
    assert checker is not None
    assert checker.path == model / "safety_checker"
    loads = make_runner(settings, "cpu").loads
    for name, folder in folders.items():
        options = loads[name].options
        assert options.model == folder
        assert options.safety is not None
        assert options.safety.folder == model / "safety_checker"
    shutil.rmtree(model / "safety_checker")
    with pytest.raises(ConfigurationError) as caught:
        find_checker(settings)
    for folder in folders.values():
        assert str(folder / "safety_checker") in str(caught.value)


def test_the_runner_is_told_what_the_settings_say(model: Path, tmp_path: Path) -> None:
    """Another folder, labels, threshold, references, quarantine: each from its own variable."""
    elsewhere = (model / "safety_checker").rename(tmp_path / "elsewhere")
    settings = load_settings(
        {"model": model},
        {
            "FLUX2_SAFETY_MODEL": str(elsewhere),
            "FLUX2_SAFETY_LABELS": "normal",
            "FLUX2_SAFETY_THRESHOLD": "0.85",
            "FLUX2_SAFETY_REFERENCES": "1",
            "FLUX2_SAFETY_QUARANTINE": str(tmp_path / "blocked"),
        },
    )
    checker = find_checker(settings)
    assert checker is not None
    assert (checker.path, checker.unsafe) == (elsewhere, ("normal",))
    expected = SafetyOptions(
        folder=elsewhere,
        labels=("normal",),
        threshold=0.85,
        check_references=True,
        quarantine=tmp_path / "blocked",
    )
    assert safety_options(settings) == expected
    order = make_runner(settings, "cpu").loads[Model.DEV]
    assert order.options.safety == expected
    assert TO_RUNNER.validate_json(TO_RUNNER.dump_json(order)) == order
    with pytest.raises(ConfigurationError, match="no label porn"):
        find_checker(settings.model_copy(update={"safety_labels": ("porn",)}))


@pytest.mark.parametrize("threshold", ["0", "-0.1", "1.1", "nan"])
def test_a_threshold_that_flags_all_or_nothing_is_refused(threshold: str) -> None:
    """It is a share above 0, and at most 1."""
    with pytest.raises(ConfigurationError, match="safety_threshold"):
        load_settings({}, {"FLUX2_SAFETY_THRESHOLD": threshold})


def test_who_is_checked() -> None:
    """The key's rule before the server's; a request's own wish only where the rule is optional."""
    for server, own, asked in itertools.product(RULES, (None, *RULES), (True, False)):
        rule = own or server
        expected = {"required": True, "optional": asked, "off": False}[rule]
        assert must_check(server, own, asked=asked) == expected


@pytest.mark.parametrize("server", RULES)
@pytest.mark.parametrize("own", [None, *RULES])
@pytest.mark.parametrize("asked", [True, False])
def test_an_order_is_decided(server: SafetyRule, own: SafetyRule | None, asked: bool) -> None:
    """Nothing else of it changes. Without a checker a check that is due is an error, never a no."""
    caller = Caller(owner="key", limits=KeyLimits(safety=own))
    rules = SafetyRules(server, DenyList(), {"key": caller}.get)
    order = _order(seed=1, enable_safety_checker=asked)
    is_due = must_check(server, own, asked=asked)
    if server == "off" and is_due:
        with pytest.raises(RequestError, match="no safety checker") as caught:
            rules.decide(order, "key")
        assert caught.value.status == 503
    else:
        wanted = replace(order.settings, check_safety=is_due)
        assert rules.decide(order, "key") == replace(order, settings=wanted)


@pytest.mark.parametrize(("server", "checked"), [("required", True), ("optional", True)])
def test_a_key_that_is_gone_vouches_for_nobody(server: SafetyRule, checked: bool) -> None:
    """What it sent before it was revoked is checked, whatever it had asked for."""
    rules = SafetyRules(server, DenyList(), lambda _: None)
    order = rules.decide(_order(enable_safety_checker=False), "gone")
    assert order.settings.check_safety == checked
    rules = SafetyRules("off", DenyList(), lambda _: None)
    assert not rules.decide(_order(), "gone").settings.check_safety


def test_a_keys_rule_is_kept_in_its_file(tmp_path: Path) -> None:
    """Keys made before there were rules have none of their own."""
    file = KeyFile(tmp_path)
    key, _ = file.create("trusted", KeyLimits(safety="off"), 1.0)
    assert KeyFile(tmp_path).read()[0].limits.safety == "off"
    content = json.loads(file.path.read_text())
    del content["keys"][0]["limits"]["safety"]
    file.path.write_text(json.dumps(content))
    assert file.read() == (key.model_copy(update={"limits": KeyLimits()}),)
    content["keys"][0]["limits"]["safety"] = "sometimes"
    file.path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="left as it is"):
        file.read()


def test_a_flagged_reference_is_told_by_its_place() -> None:
    """In fal's shape, as any other mistake of an image URL."""
    (item,) = refused_reference(2, "https://a/b.png").body["detail"]
    assert item == {
        "loc": ["body", "image_urls", 2],
        "msg": REFUSED,
        "type": "content_policy_violation",
        "url": "https://docs.fal.ai/errors#content_policy_violation",
        "input": "https://a/b.png",
    }


@pytest.fixture
async def preparer(make_settings: MakeSettings, tmp_path: Path) -> AsyncIterator[InputPreparer]:
    """Return a prepare step with a deny list, over an open store."""
    deny = tmp_path / "deny.txt"
    deny.write_text("# people\nJohn Doe\n")
    settings = make_settings(prompt_deny=deny)
    store = Store(settings.data_dir)
    await store.open()
    rules = SafetyRules.of(settings, lambda owner: Caller(owner=owner))
    files = FileStore(settings.data_dir / "files")
    loras = LoraFinder(settings, files, store, Web())
    yield InputPreparer(settings, files, store, Web(), Decoder(), loras, rules)
    await store.close()


@pytest.mark.anyio
@pytest.mark.parametrize("padding", [0, 100_000])
async def test_a_denied_prompt_is_a_policy_violation(preparer: InputPreparer, padding: int) -> None:
    """A 422 in fal's shape, before any reference is fetched; other prompts pass."""
    prompt = "a portrait of john-d\u200boe" + " x" * padding
    body = {"prompt": prompt, "image_urls": ["https://images.example/a.png"]}
    job = await preparer._store.insert(
        Job(
            request_id="denied",
            endpoint_id="fal-ai/flux-2/flash/edit",
            owner="local",
            origin="https://box",
            input=json.dumps(body),
            created_at=1.0,
        )
    )
    for step in (preparer.read, preparer.prepare):
        with pytest.raises(InputError) as caught:
            await step(job)
        assert caught.value.status == 422
        (item,) = caught.value.body["detail"]
        assert list(item) == ["loc", "msg", "type", "url", "input"]
        assert (item["loc"], item["msg"]) == (["body", "prompt"], REFUSED)
        assert item["type"] == "content_policy_violation"
        assert item["url"].endswith("#content_policy_violation")
    assert isinstance(preparer._fetcher, Web)
    assert preparer._fetcher.asked == []
    fine = replace(job, request_id="fine", input=json.dumps({**body, "prompt": "john the doe"}))
    assert (await preparer.read(await preparer._store.insert(fine))).prompt == "john the doe"


def test_a_deny_list_that_is_not_there_stops_the_start(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """A server that cannot know what it must refuse does not come up."""
    with pytest.raises(ConfigurationError, match="none.txt"):
        SafetyRules.of(make_settings(prompt_deny=tmp_path / "none.txt"), lambda _: None)
