"""What is served of all that fal has: aliases that the operator names, models that are there."""

from pathlib import Path

import pytest

from pipelines.types import Model
from server.catalogue import CATALOGUE
from server.errors import ConfigurationError, RequestError
from server.offer import Offer
from tests.server.conftest import MakeSettings

ALIASES = ("fal-ai/flux-2-pro", "fal-ai/flux-2-pro/edit", "fal-ai/flux-2-max")
LEFT_OUT = "fal-ai/flux-2-max/edit"
KLEIN = "fal-ai/flux-2/klein/4b"


def refusal(offer: Offer, endpoint_id: str) -> str:
    """Return what the offer says of an endpoint that it does not have."""
    with pytest.raises(RequestError) as caught:
        offer.find(endpoint_id)
    assert caught.value.status == 404
    assert caught.value.headers == {"x-fal-billable-units": "0"}
    assert set(caught.value.body) == {"detail"}
    return str(caught.value.body["detail"])


def test_aliases_are_served_where_they_are_named(make_settings: MakeSettings) -> None:
    """Each is a decision of its own, and an endpoint with its edits is none."""
    offer = Offer.of(make_settings(aliases=",".join(ALIASES)))
    for name in ALIASES:
        assert offer.find(name) is CATALOGUE[name]
    assert LEFT_OUT not in [endpoint.id for endpoint in offer.endpoints]
    assert f"FLUX2_ALIASES={LEFT_OUT}" in refusal(offer, LEFT_OUT)


def test_by_default_there_are_no_aliases(make_settings: MakeSettings) -> None:
    """What is not [pro] does not answer to its name unless somebody says so."""
    offer = Offer.of(make_settings())
    for name in (*ALIASES, LEFT_OUT):
        assert f"FLUX2_ALIASES={name}" in refusal(offer, name)


@pytest.mark.parametrize("name", ["fal-ai/flux-2-por", "fal-ai/flux-2", KLEIN, "*"])
def test_an_alias_that_is_none_is_a_mistake(make_settings: MakeSettings, name: str) -> None:
    """A slip of the pen, or an endpoint with weights of its own, is told with what there is."""
    with pytest.raises(ConfigurationError, match="FLUX2_ALIASES") as caught:
        Offer.of(make_settings(aliases=f"fal-ai/flux-2-pro,{name}"))
    assert repr(name) in str(caught.value)
    assert LEFT_OUT in str(caught.value)


def test_what_a_model_serves_needs_that_model() -> None:
    """A server without the weights says so rather than draw with others."""
    alone = Offer({Model.KLEIN_4B}, ())
    assert alone.find(KLEIN).model is Model.KLEIN_4B
    assert {endpoint.model for endpoint in alone.endpoints} == {Model.KLEIN_4B}
    assert "FLUX2_MODELS=dev=FOLDER" in refusal(alone, "fal-ai/flux-2")
    assert "FLUX2_MODELS=klein-4b=FOLDER" in refusal(Offer({Model.DEV}, ()), KLEIN)


def test_what_fal_does_not_have_either_is_told_in_its_words() -> None:
    """Unknown paths read as they do there."""
    assert refusal(Offer({Model.DEV}, ()), "fal-ai/flux-2/no") == "Path /no not found"


def test_the_gallery_is_served_while_its_loras_are_there(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Each by a file of its name, which the refusal names; no restart is needed."""
    name = "flux-2-lora-gallery/realism"
    assert f"{name}.safetensors" in refusal(Offer.of(make_settings()), f"fal-ai/{name}")
    offer = Offer.of(make_settings(lora_dir=str(tmp_path)))
    assert "FLUX2_LORA_DIR" in refusal(offer, f"fal-ai/{name}")
    (tmp_path / name).parent.mkdir()
    (tmp_path / f"{name}.safetensors").touch()
    assert offer.find(f"fal-ai/{name}").lora == name
    assert [each.id for each in offer.endpoints if each.lora] == [f"fal-ai/{name}"]
    assert "hdr-style.safetensors" in refusal(offer, "fal-ai/flux-2-lora-gallery/hdr-style")
