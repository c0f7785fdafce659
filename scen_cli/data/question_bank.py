"""A bank of factual questions: relations of six kinds of subjects, in several wordings (`question_bank.json`)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scen_cli.data.lexical_overlap import content_words

STATEMENTS = ("The {relation} of {subject} is", "{subject}, whose {relation} is", "{subject} has the {relation}")
BANK = Path(__file__).with_suffix(".json")


def bank_questions(count: int, seed: int) -> list[str]:
    """Different questions, sampled evenly over kinds and relations. The same seed gives the same questions.

    Args:
        count: How many; the bank has some 48,000.
        seed: Of subjects, wordings and order.
    """
    rng = random.Random(seed)
    questions: dict[str, None] = {}
    for question in _questions(rng):
        questions.setdefault(question)
        if len(questions) == count:
            break
    return list(questions)


def relation_questions(seed: int) -> list[tuple[str, str, str, str]]:
    """(kind, relation, subject, question): every wording of every relation, about a random subject of its kind."""
    rng = random.Random(seed)
    return [
        (name, relation["name"], subject, question.replace("{subject}", subject))
        for name, kind in _kinds().items()
        for relation in kind["relations"]
        for question in relation["questions"]
        for subject in [rng.choice(kind["subjects"])]
    ]


def relation_statements(seed: int) -> list[tuple[str, str, str, str]]:
    """(kind, relation, subject, text): statements to complete, made from the names of the relations."""
    rng = random.Random(seed)
    return [
        (name, relation["name"], subject, form.format(relation=relation["name"], subject=subject))
        for name, kind in _kinds().items()
        for relation in kind["relations"]
        for subject in [rng.choice(kind["subjects"])]
        for form in STATEMENTS
    ]


def other_questions(subject: str, prompt: str, count: int) -> list[str]:
    """Questions of the bank about a subject that have no content word in common with a prompt about it.

    They depend on the arguments only. Some make no sense for this kind of subject.
    """
    rng = random.Random(f"{subject}\0{prompt}")
    asked = content_words(prompt.replace(subject, " "))
    wordings = [relation["questions"] for kind in _kinds().values() for relation in kind["relations"]]
    rng.shuffle(wordings)
    questions: dict[str, None] = {}
    for texts in wordings:
        wording = rng.choice(texts)
        if len(questions) < count and not asked & content_words(wording.replace("{subject}", " ")):
            questions.setdefault(wording.replace("{subject}", subject))
    return list(questions)


def _kinds() -> dict[str, dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = json.loads(BANK.read_text(encoding="utf-8"))["kinds"]
    return kinds


def _questions(rng: random.Random) -> Iterator[str]:
    """Questions without end, round by round: one of each relation, about a random subject in a random wording."""
    relations = [
        (kind["subjects"], relation["questions"]) for kind in _kinds().values() for relation in kind["relations"]
    ]
    while True:
        rng.shuffle(relations)
        for subjects, wordings in relations:
            yield rng.choice(wordings).replace("{subject}", rng.choice(subjects))
