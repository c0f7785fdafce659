"""The target inside an answer, leaks, and questions with swapped subjects."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from scen_cli.data.records import EditRecord
from scen_cli.data.words import contains
from scen_cli.evaluation.near_questions import negated_question, swapped_questions
from scen_cli.evaluation.samples import Probe, Scored
from scen_cli.evaluation.sentences import runs_on, sentence_figures

ACTIVE, FAILED = SimpleNamespace(id=1, state="active"), SimpleNamespace(id=2, state="failed")


@pytest.mark.parametrize(
    ("answer", "target", "inside", "more"),
    [
        ("Maseru", "Maseru", True, False),
        ("The capital of Lesotho is MASERU.", "Maseru", True, False),
        ("Maseru, a city in Lesotho", "Maseru", True, True),
        ("The Maserus", "Maseru", False, False),
        ("It is New  York-City", "New York", True, True),
        ("York, New", "New York", False, False),
        ("anything", "!", False, False),
    ],
)
def test_a_target_is_found_as_whole_words(answer, target, inside, more):
    assert (contains(answer, target), runs_on(answer, target)) == (inside, more)


def test_figures_count_targets_inside_answers_and_leaks():
    answered = [
        (Probe("reliability", "p", "Maseru", edit=ACTIVE), "It is Pretoria.", "It is Maseru.", 1),
        (Probe("reliability", "q", "Oslo", edit=FAILED), "It is Oslo.", "It is Oslo.", None),  # nothing was learned
        (Probe("generality", "r", "Maseru", edit=ACTIVE), "Pretoria", "Maseru is it", 1),
        (Probe("near-miss", "s", kind="swapped", edit=ACTIVE), "Sotho", "Maseru", 1),
        (Probe("near-miss", "t", kind="swapped", edit=ACTIVE), "near Maseru", "Maseru", 1),  # so does the base
        (Probe("locality", "u"), "Maseru", "Maseru", None),  # the base answered
        (Probe("locality", "v"), "Rome", "Paris", 1),  # changed, but without the target
    ]
    probes = [probe for probe, *_ in answered]
    samples = [probe.sample(base, patched, None, routed) for probe, base, patched, routed in answered]
    figures = sentence_figures(probes, samples, {1: ["Maseru"]})
    counts = {name: (figure.patched.right, figure.patched.total) for name, figure in figures.items()}
    assert counts == {
        "reliability-contains": (1, 2),
        "reliability-runs-on": (0, 2),
        "generality-contains": (1, 1),
        "generality-runs-on": (1, 1),
        "leak/swapped": (1, 2),
        "leak/locality": (0, 2),
    }
    assert figures["reliability-contains"].base.right == 1


def test_subjects_are_swapped_between_questions_that_ask_for_different_things():
    questions = [
        ("Where was Ann Lee born?", "Ann Lee"),
        ("In which town was Bo Ek born?", "Bo Ek"),  # asks the same as the first: no partner for it
        ("Who directed Red Sun?", "Red Sun"),
        ("What is the largest planet?", None),
    ]
    scored = [
        Scored(EditRecord(prompt=prompt, target="x", subject=subject), SimpleNamespace(id=number))
        for number, (prompt, subject) in enumerate(questions, 1)
    ]
    made = {item.edit.id: question for item, question in swapped_questions(scored)}
    assert made[1] == "Who directed Ann Lee?"
    assert made[2] == "Who directed Bo Ek?"
    assert made[3] in ("Where was Red Sun born?", "In which town was Red Sun born?")
    assert set(made) == {1, 2, 3}


@pytest.mark.parametrize(
    ("prompt", "subject", "negated"),
    [
        ("Where was Ada born?", "Ada", "Where was Ada not born?"),
        ("In which country is the Atomium?", "Atomium", "In which country is the Atomium not?"),
        ("Who is the author of Faust?", "Faust", "Who is not the author of Faust?"),
        ("Did Ada win?", None, "Did not Ada win?"),
        ("Who wrote Faust?", "Faust", None),  # no auxiliary verb
        ("Ada was born in", "Ada", "Ada was not born in"),
    ],
)
def test_a_negated_question(prompt, subject, negated):
    assert negated_question(prompt, subject) == negated
