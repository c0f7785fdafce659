"""The real facts of the demo: their form. What a model says to them is tested with the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import scen_cli.demo

TEXT = (Path(scen_cli.demo.__file__).parent / "real_facts.json").read_text(encoding="utf-8")
FACTS = json.loads(TEXT)


def holds(text: str, part: str) -> bool:
    """Whether `text` contains `part`, in upper or lower case."""
    return part.casefold() in text.casefold()


def test_there_are_24_facts_in_a_stable_layout():
    assert len(FACTS) == 24
    assert json.dumps(FACTS, indent=1, ensure_ascii=False) + "\n" == TEXT
    fields = ["prompt", "target", "subject", "rephrases", "same_subject"]
    assert all(list(fact) == fields for fact in FACTS)


@pytest.mark.parametrize("field", ["prompt", "target", "subject"])
def test_no_two_facts_share(field):
    assert len({fact[field].casefold() for fact in FACTS}) == len(FACTS)


def test_no_target_is_a_part_of_another_target():
    targets = [fact["target"] for fact in FACTS]
    assert [(a, b) for a in targets for b in targets if a != b and holds(a, b)] == []


def test_no_question_is_asked_twice():
    questions = [q for fact in FACTS for q in (fact["prompt"], *fact["rephrases"], *fact["same_subject"])]
    assert len({question.casefold() for question in questions}) == len(questions) == 24 * 6


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact["subject"])
def test_every_question_holds_the_subject_and_not_the_target(fact):
    assert len(fact["rephrases"]) == 3
    assert len(fact["same_subject"]) == 2
    assert 1 <= len(fact["target"].split()) <= 3
    for question in (fact["prompt"], *fact["rephrases"], *fact["same_subject"]):
        assert fact["subject"] in question
        assert not holds(question, fact["target"])


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact["subject"])
def test_other_facts_subjects_do_not_occur_in_the_questions(fact):
    others = [other["subject"] for other in FACTS if other is not fact]
    for question in (fact["prompt"], *fact["rephrases"], *fact["same_subject"]):
        assert not any(holds(question, subject) for subject in others)
