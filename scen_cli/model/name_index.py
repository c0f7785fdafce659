"""Finds names in a text: as people write them, exactly or with a small error.

A name is found by its words (`data/words.py`): with other capitals, accents, quotes, hyphens, a possessive, without its
article. If a text has no name so, it is searched once more: the words of a name in another order, with a few words
between them, or one of them with a typing error or another ending.

This file needs nothing but Python; exported checkpoints contain a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scen_cli.data.words import plain_words

ARTICLES = frozenset(("the", "a", "an"))
LINKS = frozenset("a and at da de del der des di du e el en et for from in la le of on s the to van von y".split())
BETWEEN = 3  # words that may stand between those of a name
WORD_WITH_ERROR = 5  # letters: in a shorter word, an error may make another word
SAME_BEGINNING, OTHER_ENDING = 6, 3  # letters: Sagittarii and Sagittarius
SHORTEST_PLURAL = 3  # letters of the singular
NAME_WITH_ERROR = 8  # letters of a name of one word


@dataclass(frozen=True)
class Found:
    """A name in a text.

    Attributes:
        name: Its index.
        places: (first word, last word + 1) of each occurrence; if `near`, of each part of the only one.
        near: Whether it was found with an error, or in parts.
    """

    name: int
    places: list[tuple[int, int]]
    near: bool = False


class NameIndex:
    """An index of names.

    Args:
        names: For each entry, the names of one thing; none: it has no name, and is never found.
    """

    def __init__(self, names: Sequence[Sequence[str]]) -> None:
        self._entries: dict[tuple[str, ...], list[int]] = {}
        for entry, texts in enumerate(names):
            for words in dict.fromkeys(variant for text in texts for variant in _variants(plain_words(text))):
                self._entries.setdefault(words, []).append(entry)
        self._lengths: dict[str, set[int]] = {}  # of the names that begin with a word
        self._contents = {words: _content(words) for words in self._entries}
        self._with_word: dict[str, list[tuple[str, ...]]] = {}  # names, by each word of their content
        self._spelled: dict[str, list[str]] = {}  # words, by themselves with a letter left out
        for words, content in self._contents.items():
            self._lengths.setdefault(words[0], set()).add(len(words))
            for word in content:
                self._with_word.setdefault(word, []).append(words)
        for word in self._with_word:
            for spelling in _spellings(word):
                self._spelled.setdefault(spelling, []).append(word)

    def find(self, text: Sequence[str]) -> list[Found]:
        """The entries whose names occur in a text of these words."""
        places: dict[int, dict[tuple[int, int], None]] = {}
        for start, first in enumerate(text):
            for length in self._lengths.get(first, ()):
                words = tuple(text[start : start + length])
                for entry in self._entries.get(words, ()):
                    places.setdefault(entry, {})[start, start + len(words)] = None
        if places:
            return [Found(entry, _outermost(found)) for entry, found in sorted(places.items())]
        return list(self._find_near(text))

    def _find_near(self, text: Sequence[str]) -> Iterator[Found]:
        """Entries whose names occur with an error or in parts. At most one word of a name may have an error."""
        positions: dict[str, list[int]] = {}  # of each word of a name, and of those that may be meant by it
        for index, written in enumerate(text):
            for word in {other for spelling in _spellings(written) for other in self._spelled.get(spelling, ())}:
                if word == written or _is_near(word, written):
                    positions.setdefault(word, []).append(index)
        candidates = dict.fromkeys(name for word in positions for name in self._with_word[word])
        found: dict[int, list[tuple[int, int]]] = {}
        for name in candidates:
            content = self._contents[name]
            if all(word in positions for word in content) and (places := _parts(content, positions, text)):
                for entry in self._entries[name]:
                    found.setdefault(entry, places)
        return (Found(entry, places, near=True) for entry, places in sorted(found.items()))


def _variants(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """A name's words, and those without its article if two or more are left."""
    if not words:
        return []
    return [words, words[1:]] if words[0] in ARTICLES and len(words) > 2 else [words]


def _content(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if word not in LINKS)) or words


def _spellings(word: str) -> set[str]:
    """What a word has in common with others that may be meant by it (`_is_near`): itself, its beginning, and what is
    left of it without one letter."""
    if not word.isalpha():
        return {word}
    if len(word) < WORD_WITH_ERROR - 1:
        return {word, word.removesuffix("s")}
    return {word, word[:SAME_BEGINNING] + "*", *(word[:index] + word[index + 1 :] for index in range(len(word)))}


def _is_near(word: str, written: str) -> bool:
    """Whether one word may be meant by the other: a plural, another ending, or one error: a letter that is missing,
    added or wrong, or two neighbours exchanged, but never the first letter."""
    if word == written + "s" or written == word + "s":
        return min(len(word), len(written)) >= SHORTEST_PLURAL
    if min(len(word), len(written)) < WORD_WITH_ERROR or word[0] != written[0]:
        return False
    same = max(SAME_BEGINNING, len(word) - OTHER_ENDING, len(written) - OTHER_ENDING)
    if word[:same] == written[:same]:
        return True
    start = next((i for i, (a, b) in enumerate(zip(word, written, strict=False)) if a != b), -1)
    if start < 0:
        return abs(len(word) - len(written)) == 1
    rest, other = word[start:], written[start:]
    swapped = rest[:2] == other[1::-1] and rest[2:] == other[2:]
    return swapped or rest[1:] == other[1:] or rest[1:] == other or rest == other[1:]


def _parts(
    content: tuple[str, ...], positions: dict[str, list[int]], text: Sequence[str]
) -> list[tuple[int, int]] | None:
    """The places of a name's words, near each other; None if they are far apart, or have too many errors."""
    anchor = min(content, key=lambda word: len(positions[word]))
    for centre in positions[anchor]:
        chosen = [min(positions[word], key=lambda index: abs(index - centre)) for word in content]
        if len({*chosen}) < len(content) or max(chosen) - min(chosen) >= len(content) + BETWEEN + 2:
            continue
        places = _joined(sorted(chosen), text)
        errors = [text[index] for index in chosen if text[index] not in content]
        in_one_piece = len(places) == 1 and chosen == sorted(chosen)
        if len(content) == 1:
            wanted = bool(errors) and _is_surely(content[0], errors[0])
        else:  # errors, or parts in any order, but not both
            wanted = not errors or (len(errors) == 1 and in_one_piece)
        if wanted:
            return places
    return None


def _is_surely(name: str, written: str) -> bool:
    """Whether a name of one word is meant by another word: it is long, and not only the ends differ. Other endings make
    other names: Austria and Austrian, Slovenia and Slovenian."""
    return min(len(name), len(written)) >= NAME_WITH_ERROR and name[-2:] == written[-2:]


def _joined(indices: list[int], text: Sequence[str]) -> list[tuple[int, int]]:
    """Places that cover these words; words that only link them belong to them."""
    places = [(indices[0], indices[0] + 1)]
    for index in indices[1:]:
        start, end = places[-1]
        if all(word in LINKS for word in text[end:index]):
            places[-1] = (start, index + 1)
        else:
            places.append((index, index + 1))
    return places


def _outermost(places: dict[tuple[int, int], None]) -> list[tuple[int, int]]:
    """The places in order, without those inside others."""
    kept: list[tuple[int, int]] = []
    for start, end in sorted(places, key=lambda place: (place[0], -place[1])):
        if not kept or end > kept[-1][1]:
            kept.append((max(start, kept[-1][1]) if kept else start, end))
    return kept
