"""The demo's fact world: invented people, towns and companies, and questions about them.

Everything follows from `SEED` and the standard library: every machine gets the same names, facts and splits. Half of
the facts are *known*: the base is trained on them. The base never sees the other half and answers them wrongly, so
they can be edited. Further facts, about subjects that do not occur in training, give any number of additional edits.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import jsonlines

SEED = 2024
SEEN_PHRASINGS = 8  # the first phrasings of a relation may occur in training; the last two never do
TRAINED_PHRASINGS = 5  # number of these in which a known fact is trained
SUBJECT_COUNTS = {"person": 140, "town": 100, "company": 110}


@dataclass(frozen=True)
class Relation:
    """A relation: the kind of its subjects, its phrasings with `{s}` for the subject, and the possible answers."""

    subject_kind: str
    phrasings: list[str]
    answers: list[str]


RELATIONS = {
    name: Relation(row["subject_kind"], row["phrasings"], row["answers"].split())
    for name, row in json.loads((Path(__file__).parent / "relations.json").read_text(encoding="utf-8")).items()
}

_FIRST_NAMES = (
    "Ada Alan Anna Ben Carl Clara Dora Emil Emma Erik Eva Felix Fred Greta Hugo Ida Ivan Jane Karl "
    "Laura Leo Lina Mark Mary Max Nora Olga Otto Paul Rosa Ruth Sam Sara Theo Tom Vera"
).split()
_COMPANY_SUFFIXES = ["Brothers", "Works", "Group", "Trading", "Limited", "Industries"]
_ONSETS = ("b br d dr f g gr h k kl l m n p pr r s st t tr v w z").split()
_VOWELS = ["a", "e", "i", "o", "u"]
_NAME_ENDINGS = {
    "person": ["ner", "sen", "berg", "witz", "ley", "mann", "ski", "ton"],
    "town": ["burg", "ford", "mouth", "stad", "ville", "haven", "dale", "port"],
    "company": ["co", "dyne", "tex", "nova", "lux", "mark", "via", "rix"],
}


@dataclass(frozen=True)
class Fact:
    """One fact of the world.

    Attributes:
        phrasings: All questions about it. Wordings of the first `SEEN_PHRASINGS` occur in training, the others never.
        trained: Indices of the phrasings that the base was trained on; empty for an unknown fact.
    """

    subject: str
    relation: str
    answer: str
    phrasings: tuple[str, ...]
    trained: tuple[int, ...]

    @property
    def known(self) -> bool:
        return bool(self.trained)


def build_world(seed: int = SEED) -> list[Fact]:
    """All facts, in a fixed shuffled order. Every second fact of each relation is known."""
    rng = random.Random(seed)
    subjects = {kind: _names(kind, count, rng) for kind, count in SUBJECT_COUNTS.items()}
    facts = []
    for name, relation in RELATIONS.items():
        kind = relation.subject_kind
        for position, subject in enumerate(rng.sample(subjects[kind], len(subjects[kind]))):
            trained = rng.sample(range(SEEN_PHRASINGS), TRAINED_PHRASINGS) if position % 2 else []
            facts.append(_fact(name, subject, rng, sorted(trained)))
    rng.shuffle(facts)
    return facts


def further_facts(count: int, seed: int = SEED) -> list[Fact]:
    """`count` unknown facts of subjects outside the world. Their names are one syllable longer."""
    rng = random.Random(seed + 1)
    subjects = {kind: _names(kind, count // 8 + 1, rng, syllables=3) for kind in SUBJECT_COUNTS}
    pairs = [(name, subject) for name, relation in RELATIONS.items() for subject in subjects[relation.subject_kind]]
    return [_fact(name, subject, rng) for name, subject in rng.sample(pairs, count)]


def _fact(name: str, subject: str, rng: random.Random, trained: Sequence[int] = ()) -> Fact:
    relation = RELATIONS[name]
    phrasings = tuple(phrasing.format(s=subject) for phrasing in relation.phrasings)
    return Fact(subject, name, rng.choice(relation.answers), phrasings, tuple(trained))


def _names(kind: str, count: int, rng: random.Random, syllables: int = 2) -> list[str]:
    """`count` distinct invented names with distinct stems."""
    further_syllables = ["lmnrs", _VOWELS] * (syllables - 1)
    stems = ["".join(parts).capitalize() for parts in product(_ONSETS, _VOWELS, *further_syllables)]
    names = []
    for stem in rng.sample(stems, count):
        name = stem + rng.choice(_NAME_ENDINGS[kind])
        if kind == "person":
            name = f"{rng.choice(_FIRST_NAMES)} {name}"
        elif kind == "company":
            name = f"{name} {rng.choice(_COMPANY_SUFFIXES)}"
        names.append(name)
    return names


FACTS = Path(__file__).parent / "base" / "facts.jsonl"
FURTHER = 700  # further facts that the suite edits


def all_facts() -> list[Fact]:
    """The world's facts, then the further facts."""
    return build_world() + further_facts(FURTHER)


@cache
def _facts_and_answers() -> list[tuple[Fact, list[str]]]:
    """Every fact with the base's answers to its phrasings, as the training script recorded them."""
    with jsonlines.open(FACTS) as rows:
        return [(fact, row["base_answers"]) for fact, row in zip(all_facts(), rows, strict=True)]


def editable_facts() -> list[Fact]:
    """Unknown facts that the base answers wrongly in every phrasing, in a fixed order (D_edit)."""
    return [fact for fact, answers in _facts_and_answers() if not fact.known and fact.answer not in answers]


def right_facts() -> list[Fact]:
    """Known facts that the base answers rightly in their first phrasing (D_loc)."""
    return [fact for fact, answers in _facts_and_answers() if fact.known and answers[0] == fact.answer]
