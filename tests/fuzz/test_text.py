"""Any text as a prompt, through both routes of a real server: an image, or a 422 that says why."""

import json

import httpx2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.contract.fault_server import ENDPOINT, INSTANT

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=200)
EMOJI = "\U0001f469\u200d\U0001f680"
MANY = 25

EXAMPLES = settings(
    max_examples=MANY, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def is_encodable(text: str) -> bool:
    """Tell whether UTF-8 has the text: it has no half pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check(answer: httpx2.Response, prompt: str) -> None:
    """An image's answer repeats the prompt; a refusal names the field."""
    assert answer.content.isascii()
    if is_encodable(prompt):
        assert answer.status_code == 200, answer.text
        assert answer.json()["prompt"] == prompt
    else:
        assert answer.status_code == 422
        (item,) = answer.json()["detail"]
        assert (item["type"], item["loc"]) == ("string_unicode", ["body", "prompt"])


def write(prompt: str) -> bytes:
    """Write the input; half pairs are carried as escapes."""
    # The first word chooses what the pipeline does, so it is always the same.
    return json.dumps({**INSTANT, "prompt": prompt}).encode("ascii")


@given(text=ANY_TEXT)
@example(text="\ud800")
@example(text="\udc00\ud800")
@example(text="\0")
@example(text="\u202etxt.exe \u0645\u0631\u062d\u0628\u0627")
@example(text=EMOJI * 5000)
@EXAMPLES
def test_any_text_runs_or_is_refused(http: httpx2.Client, text: str) -> None:
    """On the synchronous route."""
    prompt = f"plain {text}"
    check(http.post(f"/{ENDPOINT}", content=write(prompt)), prompt)


@given(text=ANY_TEXT)
@example(text="\ud800")
@example(text="\0")
@example(text=EMOJI * 5000)
@EXAMPLES
def test_any_text_is_queued_and_its_result_replayed(http: httpx2.Client, text: str) -> None:
    """Through the queue, where the job refuses; the result is the same each time it is asked."""
    prompt = f"plain {text}"
    queued = http.post(f"/queue/{ENDPOINT}", content=write(prompt))
    assert queued.status_code == 200
    path = f"/queue/{ENDPOINT}/requests/{queued.json()['request_id']}"
    with http.stream("GET", f"{path}/status/stream") as events:
        events.read()
    result = http.get(path)
    check(result, prompt)
    assert http.get(path).content == result.content


@given(
    key=st.sampled_from(
        (
            "X-Fal-Request-Timeout",
            "X-Fal-Queue-Priority",
            "X-Fal-No-Retry",
            "X-Fal-Store-IO",
            "X-Fal-Object-Lifecycle-Preference",
            "X-Fal-Target-Url",
            "X-Fal-Runner-Hint",
            "Content-Type",
            "Content-Encoding",
            "Range",
            "Accept",
            "X-Forwarded-For",
            "X-Forwarded-Proto",
        )
    ),
    value=st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=50)
    | st.floats().map(str)
    | st.integers().map(str)
    | st.recursive(
        st.none() | st.integers() | st.text("a1"),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(("expiration_duration_seconds", "initial_acl", "rules")), inner
            )
        ),
    ).map(json.dumps),
)
@EXAMPLES
def test_no_header_breaks_a_request(http: httpx2.Client, key: str, value: str) -> None:
    """Whatever it holds, the answer is not the server's failure."""
    for path in (f"/{ENDPOINT}", f"/queue/{ENDPOINT}"):
        answer = http.post(
            path,
            content=write("plain"),
            headers=[
                (key.encode("ascii"), value.encode("latin-1", "replace").replace(b"\x7f", b""))
            ],
        )
        # A deadline that the caller set, and that was too short, is a 504.
        assert answer.status_code < 500 or answer.json()["error_type"] == "request_timeout"
