"""The operator's deny list: words that a prompt may not have.

A plain file, one entry a line; empty lines and those that begin with `#` are skipped. Entries are
compared as whole words, whatever their case, their width or form in Unicode, what stands between
their words, and characters that nobody sees. It stops mistakes and the lazy: other words for the
same thing, or look-alike letters, pass.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from server.errors import ConfigurationError

PROMPT_CHARACTERS = 50_000
"""How much of a prompt is read: more than a model's text encoder does, whatever its tokens."""

ENTRY_CHARACTERS = 100
"""The longest entry."""

_UNSEEN = "\u200b"  # stands for every character that nobody sees
_UNSEEN_CATEGORIES = frozenset({"Cf", "Cc"})
_UNSEEN_RANGES = (
    *((0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2065, 0x2065)),
    *((0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xE0000, 0xE0FFF)),
)
"""Characters that Unicode says may be ignored in display, beside those of format and control."""

_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts that write words without a space between them, or with endings grown onto them."""

Atom = tuple[str, bool]
"""A run of letters and digits, and whether only unseen characters divide it from the next one."""


class DenyList:
    """Finds the first entry that is in a prompt."""

    def __init__(self, entries: Iterable[tuple[int, str]] = ()) -> None:
        """Take entries with their line numbers. Raises ValueError for one that cannot be used."""
        self._spaced: dict[str, int] = {}
        self._unspaced: dict[str, int] = {}
        for line, entry in entries:
            words = " ".join(word for word, _ in _atoms(normalise(entry)))
            if len(entry) > ENTRY_CHARACTERS:
                raise ValueError(f"line {line}: longer than {ENTRY_CHARACTERS} characters")
            if any(map(_is_unspaced, words)):
                self._unspaced.setdefault(words.replace(" ", ""), line)
            elif len(words) < 2:
                raise ValueError(f"line {line}: fewer than two letters would match too much")
            else:
                self._spaced.setdefault(words, line)
        self._beginnings = {
            entry[:length] for entry in self._spaced for length in range(1, len(entry) + 1)
        }

    def __len__(self) -> int:
        return len(self._spaced) + len(self._unspaced)

    def find(self, prompt: str) -> int | None:
        """Return the line number of an entry that is in the prompt, or None."""
        if not self:
            return None
        text = prompt[:PROMPT_CHARACTERS]
        # Unseen characters keep accents from joining their letters: look with and without them.
        bare = normalise("".join(char for char in text if not _is_unseen(char)))
        joined = bare.replace(" ", "") if self._unspaced else ""
        for entry, line in self._unspaced.items():
            if entry in joined:
                return line
        if not self._spaced:
            return None
        for form in (bare, normalise(text)):
            line_found = self._find_words(list(_atoms(form)))
            if line_found is not None:
                return line_found
        return None

    def _find_words(self, atoms: list[Atom]) -> int | None:
        """Try every beginning; unseen characters may or may not be a space, so both are tried."""
        for start in range(len(atoms)):
            open_forms = {""}
            is_glued = True
            for place in range(start, len(atoms)):
                word, glues = atoms[place]
                longer = {form + " " + word for form in open_forms if form}
                longer |= {form + word for form in open_forms if is_glued}
                open_forms = longer & self._beginnings
                for form in open_forms:
                    if form in self._spaced:
                        return self._spaced[form]
                if not open_forms:
                    break
                is_glued = glues
        return None


def read_deny_list(path: Path | None) -> DenyList:
    """Read the operator's file; no file is an empty list.

    Raises `ConfigurationError` for one that cannot be read, or an entry that cannot be used.
    """
    if path is None:
        return DenyList()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return DenyList(
            (number, line.strip())
            for number, line in enumerate(lines, start=1)
            if line.strip() and not line.lstrip().startswith("#")
        )
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8: {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def normalise(text: str) -> str:
    """Return text without case and compatibility forms, with one sign for all that is unseen."""
    marked = "".join(_UNSEEN if _is_unseen(char) else char for char in text)
    # Folding case can leave what normalising would change again.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", marked).casefold())
    return "".join(_UNSEEN if _is_unseen(char) else char for char in folded)


def _atoms(text: str) -> Iterator[Atom]:
    runs = [(kind, "".join(run)) for kind, run in groupby(text, _kind_of)]
    for index, (kind, run) in enumerate(runs):
        if kind == "word":
            following = [kind for kind, _ in runs[index + 1 : index + 3]]
            yield run, following == ["unseen", "word"]


@lru_cache(maxsize=4096)
def _kind_of(char: str) -> str:
    if char == _UNSEEN:
        return "unseen"
    # Marks belong to their letter: in many scripts they are its vowel.
    return "word" if unicodedata.category(char)[0] in "LNM" else "gap"


@lru_cache(maxsize=4096)
def _is_unseen(char: str) -> bool:
    if char.isspace():
        return False
    if unicodedata.category(char) in _UNSEEN_CATEGORIES:
        return True
    return any(first <= ord(char) <= last for first, last in _UNSEEN_RANGES)


@lru_cache(maxsize=4096)
def _is_unspaced(char: str) -> bool:
    return unicodedata.name(char, "").startswith(_UNSPACED)
