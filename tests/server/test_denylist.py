"""The deny list: what it finds, whatever a prompt does to hide it, and what it leaves alone."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.denylist import ENTRY_CHARACTERS, DenyList, normalise, read_deny_list
from server.errors import ConfigurationError

LIST = DenyList([(1, "Forbidden"), (2, "donald duck"), (3, "café"), (7, "裸体"), (9, "R2-D2")])
UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u180e\ufe0f\u3164\u202e\U000e0041\x00\x7f"


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        *((text, 1) for text in ("forbidden", "a FORBIDDEN fox", "(forbidden)", "forbidden!")),
        *((text, 1) for text in ("not_forbidden_word", "x\nforbidden\ty", "ｆｏｒｂｉｄｄｅｎ")),  # noqa: RUF001
        *((text, 1) for text in ("𝐟𝐨𝐫𝐛𝐢𝐝𝐝𝐞𝐧", "FORBIDDEN", "forbidden\u200bfruit")),  # noqa: RUF001
        *(
            (text, 2)
            for text in ("Donald Duck", "donald-duck", "donald,  duck", "donald\u00a0duck")
        ),
        *((text, 2) for text in ("donald_duck", "donald\u200bduck", "do\u200bnald du\u200bck")),
        *((text, 3) for text in ("CAFÉ", "cafe\u0301", "cafe\u200b\u0301")),
        *((text, 7) for text in ("这是裸体的", "裸 体", "裸\u200b体")),
        *((text, 9) for text in ("r2d2 r2 d2", "R2-D2", "r2\u200bd2")),
    ],
)
def test_what_is_found(prompt: str, line: int) -> None:
    """Whole words in any case, width, form and spacing, between any punctuation."""
    assert LIST.find(prompt) == line


@pytest.mark.parametrize(
    "prompt",
    [
        *("", "forbid", "unforbidden", "forbiddenly", "donald", "duck donald", "donald and duck"),
        *("cafe", "cafés", "裸", "体裸", "r2", "forbidde n", "donaldduck", "a fox in the snow"),
    ],
)
def test_what_is_left_alone(prompt: str) -> None:
    """Parts of words, other orders, and other accents are not what the entry says."""
    assert LIST.find(prompt) is None


@given(
    before=st.text(" .,-\n", max_size=3),
    hidden=st.lists(st.text(UNSEEN, max_size=3), min_size=10, max_size=10),
    glue=st.sampled_from(["", " girl", "\u200bgirl", "-girl"]),
)
def test_unseen_characters_hide_nothing(before: str, hidden: list[str], glue: str) -> None:
    """However many stand between, before and after the letters of an entry."""
    letters = zip(hidden, "forbidden ", strict=True)
    prompt = before + "".join(unseen + letter for unseen, letter in letters).rstrip() + glue
    assert LIST.find(prompt) == 1


@given(st.text())
def test_any_text_can_be_asked_of(text: str) -> None:
    """Nothing in a prompt is an error, and normalising twice is normalising once."""
    LIST.find(text)
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(st.characters(categories=["Lu", "Ll"]), min_size=2, max_size=20))
def test_an_entry_finds_itself(word: str) -> None:
    """Between others, and in capitals if these are the same letters."""
    assert DenyList([(5, word)]).find(f"a, {word} b") == 5


def test_a_flood_takes_no_longer() -> None:
    """Megabytes of what nearly matches cost what the first of them costs."""
    deny = DenyList([(1, "a" * ENTRY_CHARACTERS), *((n, f"word{n}") for n in range(2, 5000))])
    started = time.process_time()
    assert deny.find("word " * 10_000_000) is None
    assert deny.find("a\u200b" * 20_000_000) == 1
    assert deny.find("a " * 20_000_000) is None
    assert time.process_time() - started < 20


def test_the_file_has_comments(tmp_path: Path) -> None:
    """One entry a line with its number; empty lines, comments, a mark at the start do not count."""
    path = tmp_path / "deny.txt"
    path.write_text("\ufeff# names\n\n  forbidden  \r\n\t# more\nDonald Duck\n", encoding="utf-8")
    deny = read_deny_list(path)
    assert len(deny) == 2
    assert (deny.find("forbidden"), deny.find("donald duck"), deny.find("names")) == (3, 5, None)
    assert len(read_deny_list(None)) == 0
    assert read_deny_list(None).find("anything") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"ok\nx\n", "line 2: fewer than two letters"),
        (b"c++\n", "line 1: fewer than two letters"),
        (b"!!!\n", "line 1: fewer than two letters"),
        (b"y" * (ENTRY_CHARACTERS + 1), "line 1: longer than"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    """By its name and line: a list that was read in part would be no list."""
    path = tmp_path / "deny.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_deny_list(path)
    assert str(path) in str(caught.value)
