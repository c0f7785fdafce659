"""Whether two prompts are about the same thing, as far as their words tell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

COMMON = 0.005  # of the guard's prompts: a word in more of them than this says little about a topic


def plain(text: str) -> str:
    """The text's words in small letters, without marks: two prompts that differ in nothing else are one."""
    return " ".join(_words(text))


class Topics:
    """Knows from many prompts which words are common; the others name what a prompt is about."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self._prompts = [(text.casefold(), frozenset(_words(text))) for text in prompts]
        counts = Counter(word for _text, words in self._prompts for word in words)
        self._common = {word for word, count in counts.items() if count > max(1, COMMON * len(prompts))}

    def about(self, prompt: str, subject: str | None) -> list[bool]:
        """For each of the prompts, whether it may be a question about the same as an edit's `prompt`: it has
        the edit's subject in it or, where none is given, one of the edit's uncommon words."""
        names = self._names(prompt)
        wanted = subject.casefold() if subject else None
        return [wanted in text if wanted else bool(names & words) for text, words in self._prompts]

    def same(self, prompt: str, subject: str | None, other: str, others_subject: str | None) -> bool:
        """Whether two edits may be about the same."""
        if subject and others_subject:
            return subject.casefold() == others_subject.casefold()
        return bool(self._names(prompt) & self._names(other))

    def _names(self, text: str) -> set[str]:
        return set(_words(text)) - self._common


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
