"""The words of a text, as people mean them: one rule for duplicates, subjects, near questions and scores.

Two texts say the same if their words are equal. Case, accents of Latin, Greek and Cyrillic letters, the vowel marks of
Arabic and Hebrew, width, quotes, apostrophes, hyphens between words, spaces and punctuation do not count, nor does a
possessive `'s`. Everything else does: `C`, `C++` and `C#`, other symbols, what stands in numbers (3.5, 1/2, 10²), and
the marks of scripts that cannot do without them.

This file needs nothing but Python; exported checkpoints contain a copy of it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

APOSTROPHES = frozenset("'’‘‛ʼʻʾʿ′`´＇")
HYPHENS = frozenset("-‐‑–−")
INSIDE_WORDS = frozenset("#&_@%")  # punctuation that belongs to names: C#, R&B
OUTSIDE_WORDS = frozenset("<>|~^=¨¸")  # symbols that people write around words
IN_NUMBERS = {**{mark: mark for mark in ".,:/*"}, "⁄": "/"}  # between two digits, part of the number
# Marks that one may leave out: accents of Latin, Greek and Cyrillic letters, but not the stroke that negates a symbol
# (≠, ∉); vowels of Hebrew and of Arabic.
OPTIONAL_MARKS = frozenset(map(chr, (*range(0x300, 0x338), *range(0x339, 0x370), *range(0x591, 0x5BE), 0x5BF)))
OPTIONAL_MARKS |= frozenset(map(chr, (0x5C1, 0x5C2, 0x5C4, 0x5C5, 0x5C7, *range(0x64B, 0x653), 0x670)))
VOWELS = frozenset("าำາຳ")  # of Thai and Lao: composed or not, part of the letter before them
PLAIN_LETTERS = str.maketrans({"ı": "i", "ł": "l", "ø": "o", "đ": "d", "ħ": "h", "æ": "ae", "œ": "oe"})
INVISIBLE = frozenset("\u200b\u200c\u200d\u200e\u200f\u2060\ufe0e\ufe0f\ufeff\u00ad\u0640")
FLAG_TAGS = ("\U000e0020", "\U000e007f")  # what tells England's flag from Scotland's
LONGEST_SIGN = 2  # letters of a word whose hyphen at its end is a minus
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
    character before it), `apostrophe`, `hyphen` (at a number or a sign such as A-, a minus), `joint` (in a number, part
    of it), `nothing`, or `gap`."""
    if character in APOSTROPHES:
        return "apostrophe", ""
    if character in INVISIBLE:
        return "nothing", ""
    if FLAG_TAGS[0] <= character <= FLAG_TAGS[1]:
        return "mark", character
    shown, category = unicodedata.normalize("NFKC", character), unicodedata.category(character)
    if unicodedata.decomposition(character).startswith("<super>") and category not in ("Lo", "So"):
        return "word", character  # 10² is not 102
    if "⁄" in shown and category == "No":
        return "alone", shown.replace("⁄", "/")  # 10½ is 10 1/2
    if len(shown) == 1:  # full width and half width
        character, category = shown, unicodedata.category(shown)
    if character in HYPHENS:
        return "hyphen", "-"
    if character in IN_NUMBERS:
        return "joint", IN_NUMBERS[character]
    decomposed = unicodedata.normalize("NFD", shown.casefold())
    folded = "".join(c for c in decomposed if c not in OPTIONAL_MARKS).translate(PLAIN_LETTERS)
    if category[0] == "M" or character in VOWELS:
        return "mark", folded
    if not folded.strip():  # an accent that stands alone
        return "gap", ""
    if category in ("Sc", "So") or _script(character) in UNSPACED:
        return "alone", folded
    if (category[0] in "LNS" and character not in OUTSIDE_WORDS) or character in INSIDE_WORDS:
        return "word", folded
    return "gap", ""


def stands_alone(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words, or its punctuation."""
    if not character or _script(character) in UNSPACED - {"HANGUL"}:  # Korean has spaces
        return bool(character)
    return unicodedata.category(character)[0] == "P" and unicodedata.east_asian_width(character) in "WF"


def _script(character: str) -> str:
    """The first word of a character's name, which is its script for most."""
    return unicodedata.name(character, "").split(" ")[0]


def words_of(text: str) -> list[Word]:
    """The words of a text, with their places."""
    kinds = [_fold(character) for character in text]
    kinds += [("gap", "")] * 3  # so that one may look ahead, and behind the first
    found: list[Word] = []
    open_word = False  # whether the next character of kind `word` belongs to the last word found
    skip_until = 0
    for index in range(len(text)):
        kind, part = kinds[index]
        if index < skip_until:
            continue
        if kind == "hyphen":
            kind = "word" if _is_minus(kinds, index, found[-1].text if open_word else "") else "gap"
        elif kind == "joint":
            open_word, kind = _joint(kinds, index, open_word)
        if kind == "apostrophe":
            possessive = kinds[index + 1] == ("word", "s") and kinds[index + 2][0] not in ("word", "mark")
            if open_word and possessive:
                skip_until = index + 2
            open_word = open_word and kinds[index + 1][0] == "word" and not possessive
        elif kind == "gap":
            open_word = False
        elif (kind == "word" and open_word) or (kind in ("mark", "nothing") and found and found[-1].end == index):
            found[-1] = Word(found[-1].text + part, found[-1].start, index + 1)
        elif kind != "nothing":
            found.append(Word(part, index, index + 1))
            open_word = kind != "alone"
    return [word for word in found if word.text]


def _is_minus(kinds: list[tuple[str, str]], index: int, word: str) -> bool:
    """Whether the hyphen at this place, behind this word if it touches one, is a minus: -5, A-, Cl-."""
    behind = kinds[index + 1]
    if not word:
        number = kinds[index + 2] if behind == ("joint", ".") else behind
        return number[1][:1].isdecimal()
    return len(word) <= LONGEST_SIGN and word.isalpha() and behind[0] in ("gap", "joint")


def _joint(kinds: list[tuple[str, str]], index: int, open_word: bool) -> tuple[bool, str]:
    """(whether the word before this mark goes on, the kind of the mark): `word` inside a number, as the point before
    its first digit, and as an operator with a space on both sides; else `gap`."""
    before, after = (kinds[place][1][-1:].isdecimal() for place in (index - 1, index + 1))
    if after and before and open_word:
        return True, "word"
    if after and kinds[index][1] == "." and kinds[index - 1][0] in ("gap", "hyphen"):
        return open_word, "word"
    numbers = all(kinds[place][1][-1:].isdecimal() for place in (index - 2, index + 2))
    is_operator = kinds[index][1] in "*/" and numbers and kinds[index - 1][0] == kinds[index + 1][0] == "gap"
    return False, "word" if is_operator else "gap"


def plain_words(text: str) -> tuple[str, ...]:
    """The words of a text as they are compared."""
    return tuple(word.text for word in words_of(text))


@lru_cache(100_000)  # the prompts and subjects of a large project are compared several times each
def plain(text: str) -> str:
    """A text as its words alone, with a space between them. Texts that mean the same are equal in this form."""
    return " ".join(plain_words(text))


def same_text(first: str, second: str) -> bool:
    """Whether two texts are equal but for the form, composed or not, of their letters."""
    return unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second)


def contains(text: str, part: str) -> bool:
    """Whether a text contains the words of another, side by side."""
    words = plain(part)
    return bool(words) and f" {words} " in f" {plain(text)} "
