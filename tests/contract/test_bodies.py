"""Request bodies as bytes: any characters, any content type, and what is meant to do harm."""

import pytest

from tests.contract.conftest import SMALL_INPUTS, Api, kept_path

FLUX = "fal-ai/flux-2"


def test_emoji_is_escaped(api: Api) -> None:
    """Some clients cut between the bytes of one character, so there is none of many bytes."""
    prompt = "\N{GRINNING FACE} caf\u00e9"
    answer = api.run(FLUX, {**SMALL_INPUTS[FLUX], "prompt": prompt})
    assert answer.content.isascii()
    assert b"\\ud83d\\ude00 caf\\u00e9" in answer.content
    assert answer.json()["prompt"] == prompt
    refused = api.run(FLUX, {"prompt": "A", "output_format": prompt})
    assert refused.content.isascii()
    assert refused.json()["detail"][0]["input"] == prompt


@pytest.mark.parametrize(
    "content_type",
    [None, "application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8"],
)
def test_body_is_json_whatever_it_is_called(api: Api, content_type: str | None) -> None:
    """Docs' own curl lines leave the content type out."""
    headers = {} if content_type is None else {"content-type": content_type}
    answer = api.http.post(f"/{FLUX}", content=b'{"num_images": 9}', headers=headers)
    assert [item["loc"][1] for item in answer.json()["detail"]] == ["prompt", "num_images"]
    queued = api.http.post(f"/queue/{FLUX}", content=b"{}", headers=headers)
    assert queued.status_code == 200


HOSTILE: dict[str, str | bytes] = {
    "nothing": "",
    "half": '{"prompt": "A"',
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "a byte": b"\x00",
    "list": "[]",
    "null": "null",
    "text": '"prompt"',
    "NaN": '{"prompt": "A", "guidance_scale": NaN}',
    "Infinity": '{"prompt": "A", "guidance_scale": -Infinity}',
    "1e999": '{"prompt": "A", "guidance_scale": 1e999}',
    "1e999 steps": '{"prompt": "A", "num_inference_steps": 1e999}',
    "400 digits": f'{{"prompt": "A", "guidance_scale": {"9" * 400}}}',
    "5,000 digits": f'{{"prompt": "A", "seed": {"9" * 5000}}}',
    "5,000 digits, quoted": f'{{"prompt": "A", "seed": "{"9" * 5000}"}}',
    "30 digits": f'{{"prompt": "A", "seed": {"9" * 30}}}',
    "minus 30 digits": f'{{"prompt": "A", "seed": -{"9" * 30}}}',
    "lone surrogate": '{"prompt": "\\ud800", "num_inference_steps": 4, "image_size": "square"}',
    "lone surrogate as option": '{"prompt": "A", "output_format": "\\ud800"}',
    "lone surrogate as key": '{"\\ud800": 1}',
    **{f"{deep} deep": '{"prompt": ' + "[" * deep + "]" * deep + "}" for deep in (300, 600, 9999)},
    "objects 600 deep": '{"prompt": ' + '{"a":' * 600 + "1" + "}" * 601,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_body(api: Api, name: str) -> None:
    """It is the caller's mistake, never the server's: refused on both routes with a reason."""
    body = HOSTILE[name]
    content = body if isinstance(body, bytes) else body.encode("ascii")
    answer = api.http.post(f"/{FLUX}", content=content)
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]
    queued = api.http.post(f"/queue/{FLUX}", content=content)
    assert queued.status_code in (200, 400, 422)
    if queued.status_code == 200:
        kept = kept_path(FLUX, queued.json()["request_id"])
        api.wait(kept)
        assert api.result(kept).status_code == 422
