"""How names are compared: without case, accents and the order of their parts; `*` stands for anything."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Letters that are no accented forms by Unicode's decomposition, and are searched for without.
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "\u0131": "i", "æ": "ae", "œ": "oe", "þ": "th"}
)
# DICOM's separators of components (^) and writings (=), and those that people write.
_WORDS = re.compile(r"[\s^=,;]+")


@lru_cache(maxsize=1024)
def fold(text: str) -> str:
    """The text as it is compared: "Müller" and "MULLER" are one, and so are half and full width."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    bare = "".join(c for c in decomposed if not unicodedata.combining(c))
    return unicodedata.normalize("NFKC", bare).translate(_PLAIN).strip()


def words(name: str) -> list[str]:
    """The folded parts of a name in any of its writings, each once."""
    return list(dict.fromkeys(word for word in _WORDS.split(fold(name)) if word))


def has_wildcard(text: str) -> bool:
    return "*" in text


class Pattern:
    """What a person typed for a name or an identifier."""

    def __init__(self, text: str) -> None:
        self.words = words(text)
        self.whole = fold(text)
        self.wild = has_wildcard(text)
        self._words = [_compiled(word) for word in self.words]
        self._whole = _compiled(self.whole)

    def matches_name(self, name_words: list[str]) -> bool:
        """Whether each word typed is a word of the name."""
        return bool(self._words) and all(
            any(pattern.fullmatch(word) for word in name_words) for pattern in self._words
        )

    def matches_any(self, names: list[str]) -> bool:
        """Whether each word typed is a word of one of a patient's names."""
        return self.matches_name([word for name in names for word in words(name)])

    def matches_identifier(self, folded: str) -> bool:
        """Whether it is the identifier, from end to end."""
        return self._whole.fullmatch(folded) is not None


def _compiled(text: str) -> re.Pattern[str]:
    # Several asterisks in a row are one: each would multiply the ways to fail.
    return re.compile(".*".join(map(re.escape, re.split(r"\*+", text))), re.DOTALL)
