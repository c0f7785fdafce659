"""The words of a text, as people mean them: one rule for duplicates, subjects, near questions and scores.

Two texts say the same if their words are equal. Case, accents of Latin, Greek and Cyrillic letters, width, quotes,
apostrophes, hyphens between words, spaces and punctuation do not count, nor does a possessive `'s`. Everything else
does: `C`, `C++` and `C#`, other symbols, and the marks of scripts that cannot do without them.

This file needs nothing but Python; exported checkpoints contain a copy of it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

APOSTROPHES = frozenset("'’‘ʼ`´＇")
HYPHENS = frozenset("-‐‑–−")
INSIDE_WORDS = frozenset("#&_@%")  # punctuation that belongs to names: C#, R&B
OUTSIDE_WORDS = frozenset("<>|~^=¨¸")  # symbols that people write around words
ACCENTS = ("\u0300", "\u036f")  # the combining marks of Latin, Greek and Cyrillic
INVISIBLE = frozenset("\u200b\u200c\u200d\u2060\ufe0e\ufe0f\ufeff\u00ad")
# Scripts that put no spaces between words, and Korean, which joins endings to names: each character is a word.
UNSPACED = frozenset(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "HANGUL"))


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes:
        text: How it is compared.
        start: Where it begins in the text, in characters.
        end: Where it ends.
    """

    text: str
    start: int
    end: int


@lru_cache(maxsize=1 << 16)
def _fold(character: str) -> tuple[str, str]:
    """The kind of a character, and how it is compared: `word`, `alone` (a word of its own), `mark` (belongs to the
    character before it), `apostrophe`, `hyphen` (before a number, a minus), `nothing`, or `gap`."""
    if character in APOSTROPHES:
        return "apostrophe", ""
    if character in HYPHENS:
        return "hyphen", "-"
    if character in INVISIBLE:
        return "nothing", ""
    category = unicodedata.category(character)
    decomposed = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", character).casefold())
    folded = "".join(c for c in decomposed if not ACCENTS[0] <= c <= ACCENTS[1])
    if category[0] == "M":
        return "mark", folded
    if not folded.strip():  # an accent that stands alone
        return "gap", ""
    if category in ("Sc", "So") or _script(character) in UNSPACED:
        return "alone", folded
    if (category[0] in "LNS" and character not in OUTSIDE_WORDS) or character in INSIDE_WORDS:
        return "word", folded
    return "gap", ""


def stands_alone(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words."""
    return bool(character) and _script(character) in UNSPACED - {"HANGUL"}  # Korean has spaces


def _script(character: str) -> str:
    """The first word of a character's name, which is its script for most."""
    return unicodedata.name(character, "").split(" ")[0]


def words_of(text: str) -> list[Word]:
    """The words of a text, with their places."""
    kinds = [_fold(character) for character in text]
    kinds += [("gap", "")] * 3  # so that one may look ahead
    found: list[Word] = []
    open_word = False  # whether the next character of kind `word` belongs to the last word found
    skip_until = 0
    for index in range(len(text)):
        kind, part = kinds[index]
        if index < skip_until or kind == "nothing":
            continue
        if kind == "hyphen":
            is_minus = not open_word and kinds[index + 1][1].isdecimal()
            kind = "word" if is_minus else "gap"
        if kind == "apostrophe":
            possessive = kinds[index + 1] == ("word", "s") and kinds[index + 2][0] not in ("word", "mark")
            if open_word and possessive:
                skip_until = index + 2
            open_word = open_word and kinds[index + 1][0] == "word" and not possessive
        elif kind == "gap":
            open_word = False
        elif (kind == "word" and open_word) or (kind == "mark" and found and found[-1].end == index):
            found[-1] = Word(found[-1].text + part, found[-1].start, index + 1)
        else:
            found.append(Word(part, index, index + 1))
            open_word = kind != "alone"
    return [word for word in found if word.text]


def plain_words(text: str) -> tuple[str, ...]:
    """The words of a text as they are compared."""
    return tuple(word.text for word in words_of(text))


@lru_cache(100_000)  # the prompts and subjects of a large project are compared several times each
def plain(text: str) -> str:
    """A text as its words alone, with a space between them. Texts that mean the same are equal in this form."""
    return " ".join(plain_words(text))


def contains(text: str, part: str) -> bool:
    """Whether a text contains the words of another, side by side."""
    words = plain(part)
    return bool(words) and f" {words} " in f" {plain(text)} "
