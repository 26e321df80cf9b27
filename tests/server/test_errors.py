"""Errors: fal's bodies, and echoes that never break the answer."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import (
    ECHO_LIMIT_CHARACTERS,
    ECHO_LIMIT_ITEMS,
    ERROR_LIMIT,
    InputError,
    RequestError,
    content_error,
    json_safe,
)


def test_content_error_has_fal_s_keys_in_fal_s_order() -> None:
    """An error of content carries its page's URL; an empty ctx is left out."""
    error = content_error("image_load_error", "Image load error", loc=("image_urls", 0), value="x")
    (item,) = error.body["detail"]
    assert list(item) == ["loc", "msg", "type", "url", "input"]
    assert item["loc"] == ["body", "image_urls", 0]
    assert item["url"] == "https://docs.fal.ai/errors#image_load_error"
    assert error.status == 422
    assert error.headers["x-fal-billable-units"] == "0"
    with_ctx = content_error("file_too_large", "x", loc=(), value="", ctx={"max_size": 1})
    assert list(with_ctx.body["detail"][0]) == ["loc", "msg", "type", "url", "ctx", "input"]


def test_request_error_repeats_its_type_as_a_header() -> None:
    """Platform errors carry `error_type` in body and header; those without have neither."""
    error = RequestError(504, "Request timed out", "request_timeout")
    assert error.body == {"detail": "Request timed out", "error_type": "request_timeout"}
    assert error.headers == {"x-fal-error-type": "request_timeout"}
    assert error.error_type == "request_timeout"
    plain = RequestError(404, "no")
    assert (plain.body, plain.headers, plain.error_type) == ({"detail": "no"}, {}, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_text(value: float) -> None:
    """NaN and Infinity are echoed as words."""
    assert json_safe(value) == str(value)


def test_long_and_binary_input_is_cut() -> None:
    """A data URI of megabytes is not sent back, and bytes are described."""
    cut = json_safe("x" * (ECHO_LIMIT_CHARACTERS + 1))
    assert cut == "x" * ECHO_LIMIT_CHARACTERS + "..."
    assert json_safe("x" * ECHO_LIMIT_CHARACTERS) == "x" * ECHO_LIMIT_CHARACTERS
    assert json_safe(b"\x00\xff") == "<binary 2 bytes>"


@pytest.mark.parametrize(
    "value", [10**25, -(10**4299), 10**5000, 2**64], ids=["25", "4299", "5000", "64 bits"]
)
def test_huge_integers_become_text(value: int) -> None:
    """Readers of JSON round them, and Python does not even write those of 5,000 digits."""
    told = json_safe(value)
    assert isinstance(told, str)
    assert len(told) <= ECHO_LIMIT_CHARACTERS + 3
    assert json_safe(2**64 - 1) == 2**64 - 1


def test_a_flood_is_cut_in_breadth_and_depth() -> None:
    """However the input is built, what is repeated of it stays small."""
    wide: list[object] = [{str(number): [number] * 10 for number in range(1000)}] * 1000
    assert len(json.dumps(json_safe(wide))) < 40 * ECHO_LIMIT_ITEMS
    long_keys = {f"{number}" + "x" * 10_000: 1 for number in range(100)}
    assert len(json.dumps(json_safe(long_keys))) < 100 * (ECHO_LIMIT_CHARACTERS + 20)
    deep: object = 0
    for _ in range(100_000):
        deep = [deep]
    assert json.dumps(json_safe(deep)).count("[") <= 100


def test_thousands_of_mistakes_are_counted_not_listed() -> None:
    """The last entry says how many there are beyond those that are told."""
    items = [{"type": "missing", "loc": ["body", n], "msg": "", "input": None} for n in range(5000)]
    detail = InputError(items).body["detail"]
    assert len(detail) == ERROR_LIMIT + 1
    assert detail[-1]["msg"] == "4900 further errors are not listed"
    assert set(detail[-1]) == set(detail[0])
    assert len(InputError(items[:ERROR_LIMIT]).body["detail"]) == ERROR_LIMIT


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.binary()
        | st.text(st.characters(codec=None, exclude_categories=())),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_was_sent_can_be_echoed(value: object) -> None:
    """Any input, lone surrogates included, gives an error body that is strict JSON in UTF-8."""
    body = InputError([{"input": value}]).body
    json.dumps(body, allow_nan=False, ensure_ascii=False).encode("utf-8")
