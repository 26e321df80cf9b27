"""Any headers in a form, at OpenAI's edits of a real server: what is wrong is told as a 400."""

import httpx2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

TYPE = "multipart/form-data; boundary=edge"
PIECES = ("name=", "filename*=", "boundary=", "*0", ";", '"', "\\", "idna'en'", "%ff", "9" * 5000)
PRINTABLE = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f")
)
PARAMETERS = PRINTABLE | st.lists(st.sampled_from(PIECES)).map("".join)

EXAMPLES = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def check(http: httpx2.Client, content_type: str, disposition: str) -> None:
    """Send a form without a prompt, which is refused however well it can be read."""
    head = f"--edge\r\nContent-Disposition: {disposition}\r\n\r\n".encode("latin-1")
    answer = http.post(
        "/v1/images/edits",
        content=head + b"x\r\n--edge--\r\n",
        headers=[(b"content-type", content_type.strip().encode("latin-1"))],
    )
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@given(parameters=PARAMETERS)
@example(parameters='x="' + ";" * 7000)
@example(parameters='x="' + "\\" * 7000)
@example(parameters="filename*0=a; filename*=b")
@example(parameters="filename*=idna'en'%ff")
@example(parameters="filename*=punycode'en'%ff")
@example(parameters="filename*=a\0b'en'x")
@example(parameters="filename*" + "9" * 5000 + "=x")
@example(parameters="name*" + "9" * 5000 + "=x")
@EXAMPLES
def test_no_head_of_a_part_breaks_a_form(http: httpx2.Client, parameters: str) -> None:
    """Whatever stands behind its name, or in the place of that."""
    check(http, TYPE, f'form-data; name="image"; {parameters}')
    check(http, TYPE, f"form-data; {parameters}")


@given(parameters=PARAMETERS)
@example(parameters='x="' + ";" * 50_000)
@example(parameters="boundary*=idna'en'%ff")
@example(parameters="boundary*=punycode'en'%ff")
@example(parameters="boundary*" + "9" * 5000 + "=x")
@EXAMPLES
def test_no_content_type_breaks_a_form(http: httpx2.Client, parameters: str) -> None:
    """With a boundary or without one."""
    check(http, f"{TYPE}; {parameters}", 'form-data; name="image"')
    check(http, f"multipart/form-data; {parameters}", 'form-data; name="image"')
