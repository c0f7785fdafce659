"""The real facts of the demo: their form. What a model says to them is tested with the model."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

import scen_cli.demo
from scen_cli.data.suites import load_suite

PATH = Path(scen_cli.demo.__file__).parent / "real_facts.jsonl"
FACTS = load_suite(str(PATH)).edits


def questions_of(fact):
    return [fact.prompt, *fact.rephrases, *(neighbour.prompt for neighbour in fact.locality)]


def holds(text: str, part: str) -> bool:
    """Whether `text` contains `part`, in upper or lower case."""
    return part.casefold() in text.casefold()


def test_there_are_24_facts_with_rephrases_and_other_questions():
    assert len(FACTS) == 24
    assert {(len(fact.rephrases), len(fact.locality)) for fact in FACTS} == {(3, 2)}
    assert {neighbour.kind for fact in FACTS for neighbour in fact.locality} == {"same-subject"}


@pytest.mark.parametrize("field", ["prompt", "target", "subject"])
def test_no_two_facts_share(field):
    assert len({getattr(fact, field).casefold() for fact in FACTS}) == len(FACTS)


def test_no_target_is_a_part_of_another_target():
    targets = [fact.target for fact in FACTS]
    assert [(a, b) for a in targets for b in targets if a != b and holds(a, b)] == []


def test_no_question_is_asked_twice():
    questions = list(chain.from_iterable(map(questions_of, FACTS)))
    assert len({question.casefold() for question in questions}) == len(questions) == 24 * 6


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.subject)
def test_every_question_holds_the_subject_and_not_the_target(fact):
    assert 1 <= len(fact.target.split()) <= 3
    for question in questions_of(fact):
        assert fact.subject in question
        assert not holds(question, fact.target)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.subject)
def test_other_facts_subjects_do_not_occur_in_the_questions(fact):
    others = [other.subject for other in FACTS if other is not fact]
    for question in questions_of(fact):
        assert not any(holds(question, subject) for subject in others)
