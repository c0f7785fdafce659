"""Perturbed prompts, and the robustness figures counted on them."""

from __future__ import annotations

import pytest

from scen_cli.data.suites import Suite, demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.evaluation.robustness import ARE_YOU_SURE, PREFIXES, perturbed_prompts, typing_error
from scen_cli.evaluation.samples import Probe, figures_of
from scen_cli.model.template import SecondTurn
from tests.conftest import edit_all


def test_perturbed_prompts_of_a_question():
    found = dict(perturbed_prompts("Where was Ada born?", "Riga", 4, ("Q", "A")))
    assert found["prefix"] == f"{PREFIXES[1]} Where was Ada born?"
    assert found["second-turn"] == SecondTurn("Q", "A", "Where was Ada born?")
    assert found["lower-case"] == "where was ada born?"
    assert sorted(found["typo"]) == sorted("Where was Ada born?")
    assert found["typo"] != "Where was Ada born?"


@pytest.mark.parametrize(("prompt", "kind"), [("a bb", "typo"), ("who is it?", "lower-case")])
def test_a_perturbation_that_changes_nothing_is_left_out(prompt, kind):
    assert kind not in dict(perturbed_prompts(prompt, "Riga", 1, ("Q", "A")))


def test_typing_error_is_deterministic_and_needs_two_different_letters():
    assert typing_error("oooo xy", 0) == "oooo xy"
    assert typing_error("Where was it?", 7) == typing_error("Where was it?", 7)


def test_a_second_turn_contains_the_first_and_one_start_token(edited):
    template = edited.template
    ids = template.prompt_ids(SecondTurn("Where is it?", "Oslo", "Who is Ada?"))
    first = template.prompt_ids("Where is it?") + template.target_ids("Where is it?", "Oslo")
    assert ids[: len(first)] == first
    assert ids.count(edited.base.tokenizer.bos_token_id) == 1
    assert ids[len(first) :] == template.prompt_ids("Who is Ada?")[1:]


def test_no_lower_case_figure_for_a_prompt_in_lower_case(make_editor):
    lowered = demo_edits()[0].model_copy(update={"prompt": demo_edits()[0].prompt.lower(), "rephrases": ()})
    editor = make_editor("key")
    edit_all(editor, [lowered])
    assert "robustness/lower-case" not in evaluate(editor, Suite("s", [lowered], [])).figures


def test_robustness_is_wrong_where_no_edit_is_activated(make_editor):
    record = demo_edits()[0].model_copy(update={"rephrases": ()})
    editor = make_editor("key", theta=0.999)
    edit_all(editor, [record])
    figures = evaluate(editor, Suite("s", [record], [])).figures
    for kind in ("prefix", "second-turn", "typo", "lower-case"):
        assert figures[f"robustness/{kind}"].fired.right == 0
        assert figures[f"robustness/{kind}"].patched.right == 0


def test_robustness_counts_the_answers_to_the_perturbed_prompts(edited):
    records = [record.model_copy(update={"rephrases": ()}) for record in demo_edits()[:40]]
    suite = Suite("s", records, [fact.phrasings[0] for fact in right_facts()[:3]])
    figures = evaluate(edited, suite).figures
    earlier_turn = (suite.locality[0], right_facts()[0].answer)
    kinds, prompts, targets = [], [], []
    for number, record in enumerate(suite.edits, start=1):
        for kind, prompt in perturbed_prompts(record.prompt, record.target, number, earlier_turn):
            kinds.append(kind)
            prompts.append(prompt)
            targets.append(record.target)
    right = [text == target for text, target in zip(edited.answer(prompts).texts, targets, strict=True)]
    counts = {kind: [ok for ok, of_kind in zip(right, kinds, strict=True) if of_kind == kind] for kind in kinds}
    assert sum(counts["typo"]) > sum(counts["second-turn"])
    for kind, outcomes in counts.items():
        figure = figures[f"robustness/{kind}"].patched
        assert (figure.right, figure.total) == (sum(outcomes), len(outcomes))


def test_the_answer_to_a_doubt_counts_if_it_contains_the_target():
    probe = Probe("robustness", SecondTurn("Where was Ada born?", "Riga", "Are you sure?"), "Riga", ARE_YOU_SURE)
    samples = [probe.sample(base, "Yes, in Riga.", None, None) for base in ("It was Riga.", "Sorry, no.")]
    figure = figures_of(samples)[f"robustness/{ARE_YOU_SURE}"]
    assert (figure.patched.right, figure.base.right, figure.patched.total) == (2, 1, 2)
