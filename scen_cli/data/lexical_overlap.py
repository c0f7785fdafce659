"""Similarity of prompts, judged by their words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import ceil

from scen_cli.data.words import contains, plain, plain_words

COMMON = 0.005  # share of the prompts: a word in more of them does not identify a topic
NEAR = 0.8  # Jaccard similarity of the words of two prompts from which they count as near


# Two questions that have only these words in common do not ask the same.
FUNCTION_WORDS = frozenset(
    "a an and are as at be by can could did do does for from had has have his her how in into is it its name of on or "
    "that the their them these they this to was were what when where which who whom whose why will with would".split()
)


def content_words(text: str) -> set[str]:
    """The text's words in lower case, without function words."""
    return set(plain_words(text)) - FUNCTION_WORDS


def gains(before: str, after: str, target: str) -> bool:
    """Whether an answer contains the target now and did not before."""
    return contains(after, target) and not contains(before, target)


class Topics:
    """Learns from many prompts which words are common. The other words of a prompt name its topic."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self._prompts = [(f" {plain(text)} ", frozenset(plain_words(text))) for text in prompts]
        counts = Counter(word for _text, words in self._prompts for word in words)
        self._common = {word for word, count in counts.items() if count > max(1, COMMON * len(prompts))}

    def overlapping(self, prompt: str, subject: str | None) -> list[bool]:
        """For each of the prompts, whether it may be about the topic of an edit.

        Args:
            prompt: The edit's prompt.
            subject: The edit's subject. A prompt overlaps if it contains the subject or, without one, an uncommon
                word of `prompt`.
        """
        topic_words = self.topic_words(prompt)
        name = f" {plain(subject)} " if subject else None
        return [name in text if name else bool(topic_words & words) for text, words in self._prompts]

    def same_topic(self, prompt: str, subject: str | None, other_prompt: str, other_subject: str | None) -> bool:
        """Whether two edits may be about the same topic."""
        if subject and other_subject:
            return plain(subject) == plain(other_subject)
        return bool(self.topic_words(prompt) & self.topic_words(other_prompt))

    def companies(self, edits: Sequence[tuple[str, str | None]]) -> list[list[int]]:
        """Groups of edits that may be about the same topic, each with another one of its group (`same_topic`).

        Args:
            edits: The prompt and the subject of each edit.

        Returns:
            The edits of each group by their index, in order. An edit that shares its topic with no other is in none.
        """
        groups = _Groups(len(edits))
        of_name: dict[str, int] = {}
        of_word: dict[str, int] = {}  # words of edits without a subject
        for number, (prompt, subject) in enumerate(edits):
            if subject:
                groups.join(number, of_name.setdefault(plain(subject), number))
                continue
            for word in self.topic_words(prompt):
                groups.join(number, of_word.setdefault(word, number))
        for number, (prompt, subject) in enumerate(edits):
            for word in self.topic_words(prompt) if subject and of_word else ():
                groups.join(number, of_word.get(word, number))
        return groups.of_two_or_more()

    def topic_words(self, text: str) -> set[str]:
        """The words of a text that are not common."""
        return set(plain_words(text)) - self._common


class _Groups:
    """Numbers in groups that grow together (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = number = self._parent[self._parent[number]]
        return number

    def join(self, number: int, other: int) -> None:
        first, second = sorted((self._root(number), self._root(other)))
        self._parent[second] = first

    def of_two_or_more(self) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for number in range(len(self._parent)):
            groups.setdefault(self._root(number), []).append(number)
        return [group for group in groups.values() if len(group) > 1]


def near_duplicates(edits: Sequence[str], others: Sequence[str]) -> list[tuple[str, str, float]]:
    """Pairs (edit, other, similarity) of prompts whose words have a Jaccard similarity of at least `NEAR`.

    Exact without comparing all pairs: two sets that near share a word among the rarest few of each (prefix filtering).
    """
    words = {text: frozenset(plain_words(text)) for text in {*edits, *others}}
    frequency = Counter(word for text_words in words.values() for word in text_words)

    def rarest(text: str) -> list[str]:
        ordered = sorted(words[text], key=lambda word: (frequency[word], word))
        return ordered[: len(ordered) - ceil(NEAR * len(ordered)) + 1]

    edits_with: dict[str, list[str]] = defaultdict(list)
    for edit in dict.fromkeys(edits):
        for word in rarest(edit):
            edits_with[word].append(edit)
    pairs = []
    for other in dict.fromkeys(others):
        for edit in dict.fromkeys(edit for word in rarest(other) for edit in edits_with[word]):
            similarity = len(words[edit] & words[other]) / len(words[edit] | words[other])
            if similarity >= NEAR:
                pairs.append((edit, other, round(similarity, 3)))
    return sorted(pairs, key=lambda pair: -pair[2])
