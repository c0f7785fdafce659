"""The question bank: relations and subjects that the default guard is built from."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

import scen_cli.data
from scen_cli.data.question_bank import relation_questions, relation_statements

KINDS = ["person", "place", "work", "organisation", "species", "product"]
TEXT = (Path(scen_cli.data.__file__).parent / "question_bank.json").read_text(encoding="utf-8")
BANK = json.loads(TEXT)["kinds"]


def words(question: str) -> set[str]:
    return set(re.findall(r"[a-z]+", question.replace("{subject}", "").lower()))


def test_the_file_has_the_stated_layout():
    assert list(BANK) == KINDS
    assert json.dumps({"kinds": BANK}, indent=1, ensure_ascii=False) + "\n" == TEXT
    assert 140 <= sum(len(kind["relations"]) for kind in BANK.values()) <= 160


@pytest.mark.parametrize("kind", KINDS)
def test_subjects_are_distinct_short_names(kind):
    subjects = BANK[kind]["subjects"]
    assert len(subjects) == 80
    assert len({subject.casefold() for subject in subjects}) == 80
    assert all(subject == subject.strip() and 1 <= len(subject.split()) <= 4 for subject in subjects)


def test_no_two_kinds_share_a_subject():
    subjects = [subject for kind in BANK.values() for subject in kind["subjects"]]
    assert len(set(subjects)) == len(subjects)


@pytest.mark.parametrize("kind", KINDS)
def test_relations_have_distinct_names_and_four_distinct_questions(kind):
    relations = BANK[kind]["relations"]
    assert 24 <= len(relations) <= 27
    assert len({relation["name"] for relation in relations}) == len(relations)
    questions = [question for relation in relations for question in relation["questions"]]
    assert len(set(questions)) == len(questions) == 4 * len(relations)
    assert all(question.count("{subject}") == 1 for question in questions)
    assert all(set(relation) == {"name", "questions", "answer"} for relation in relations)


@pytest.mark.parametrize("kind", KINDS)
def test_questions_of_one_relation_share_at_most_half_of_their_words(kind):
    for relation in BANK[kind]["relations"]:
        for first, second in combinations(map(words, relation["questions"]), 2):
            assert len(first & second) <= len(first | second) / 2, relation["questions"]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_one_sentence_with_subject_and_target(kind):
    for relation in BANK[kind]["relations"]:
        answer = relation["answer"]
        assert answer.count("{subject}") == answer.count("{target}") == 1
        assert answer.endswith(".")
        assert answer.count(".") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_subjects_stand_at_the_start_and_at_the_end_of_questions(kind):
    questions = [question for relation in BANK[kind]["relations"] for question in relation["questions"]]
    assert sum(question.removeprefix("The ").startswith("{subject}") for question in questions) >= 20
    assert sum(question.endswith(("{subject}", "{subject}?")) for question in questions) >= 20


def test_statements_name_their_relation_and_subject_and_depend_on_the_seed_alone():
    statements = relation_statements(0)
    assert statements == relation_statements(0)
    assert {(kind, relation) for kind, relation, _subject, _text in statements} == {
        (kind, relation) for kind, relation, _subject, _text in relation_questions(0)
    }
    assert all(relation in text and subject in text for _kind, relation, subject, text in statements)
    assert len({text for *_rest, text in statements}) == len(statements)
