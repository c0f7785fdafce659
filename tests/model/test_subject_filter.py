"""Subjects in prompts of token ids: which rows they block, and which tokens they take."""

from __future__ import annotations

import pytest
import torch

from scen_cli.model.subject_filter import SubjectFilter
from scen_cli.model.template import make_template
from scen_cli.model.token_pieces import pieces_of

CPU = torch.device("cpu")
PIECES = [b"", b"Where", b" is", b" Ade", b"la", b" of", b" Rome", b"?", b" the", b" Great", "é".encode()[:1]]


@pytest.fixture(scope="module")
def template(demo_base):
    return make_template(demo_base.tokenizer, demo_base.model, "[INST]{prompt}[/INST]")


def test_rows_whose_subject_is_not_named_are_blocked():
    subjects = SubjectFilter([["Adela"], [], ["Rome", "Roma"], ["Adela of Rome"]], PIECES)
    blocked = subjects.blocked([[1, 2, 3, 4, 7], [1, 2, 6], [1, 2, 3, 4, 5, 6], [1, 2]], CPU)
    assert blocked.tolist() == [
        [False, False, True, True],
        [True, False, False, True],
        [False, False, False, False],
        [True, False, True, True],
    ]


def test_the_spans_of_a_subject_are_its_tokens():
    [named] = SubjectFilter([[], ["Adela"]], PIECES).named([1, 2, 3, 4, 7, 3, 4])
    assert (named.rows, named.spans) == ([1], [(2, 4, True), (5, 7, True)])


def test_of_a_name_in_parts_the_first_is_masked_and_the_others_are_left_out():
    [named] = SubjectFilter([["Adela of Rome"]], PIECES).named([6, 9, 3, 4])
    assert named.spans == [(0, 1, True), (2, 4, False)]


def test_a_space_that_is_a_token_of_its_own_belongs_to_the_subject():
    [named] = SubjectFilter([["Adela"]], [*PIECES, b" ", b"Ade"]).named([1, 11, 12, 4])
    assert named.spans == [(1, 4, True)]


def test_half_a_character_and_unknown_ids_are_no_error():
    assert SubjectFilter([["Rome"]], PIECES).named([10, 6, 10, 999])[0].spans == [(1, 2, True)]


@pytest.mark.parametrize(
    "prompt",
    [
        *("Ivan Gromener was born where?", "Tell me (Ivan Gromener) more", "where was ivan gromener born?"),
        *("Where was “Ivan Gromener” born?", "Who was Ivan Gromener's father?", "Where was Iván-Gromener born?"),
        *("Where was Ivan Gromenre born?", "Where was Ivan Gromenner born?", "Where was Gromener, Ivan, born?"),
    ],
)
def test_a_subject_is_found_as_people_write_it(template, prompt):
    subjects = SubjectFilter([["Ivan Gromener"]], template.pieces)
    assert subjects.blocked([template.prompt_ids(prompt)], CPU).tolist() == [[False]]


@pytest.mark.parametrize(
    "prompt", ["Where was Olga Gromener born?", "Where was Ivan born?", "Where was Ivan Gromov born?", "Ivan"]
)
def test_another_name_is_not_the_subject(template, prompt):
    subjects = SubjectFilter([["Ivan Gromener"]], template.pieces)
    assert subjects.blocked([template.prompt_ids(prompt)], CPU).tolist() == [[True]]


TEXTS = ["Where was Élan born?", "naïve 北京 🙂 (x)", "1990-95: C++\n\ttabs", "a  b", "हिन्दी"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_of_the_tokens(demo_base, text):
    ids = demo_base.tokenizer(text, add_special_tokens=False).input_ids
    pieces = pieces_of(demo_base.tokenizer)
    assert b"".join(pieces[id] for id in ids).decode().split() == demo_base.tokenizer.decode(ids).split()
