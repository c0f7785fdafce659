"""Portability, near-miss locality and drift, on prompts whose figures are known."""

from __future__ import annotations

from scen_cli.data.records import Neighbour, Question
from scen_cli.data.suites import Suite, demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.evaluation.gates import PAPER, SENTENCES
from tests.conftest import edit_all


def test_each_figure_counts_its_own_prompts(make_editor):
    editor = make_editor("key")
    first, second = demo_edits()[:2]
    known = right_facts()[0]
    record = first.model_copy(
        update={
            "portability": (
                Question(prompt=known.phrasings[0], target=known.answer, kind="easy"),  # the base answers it rightly
                Question(prompt=known.phrasings[1], target="no such answer", kind="hard"),
            ),
            "locality": (
                Neighbour(prompt=known.phrasings[2], kind="same-subject"),
                Neighbour(prompt=second.prompt, kind="same-relation"),  # an edit's prompt: not asked
                Neighbour(prompt=first.rephrases[0], kind="same-relation"),  # an edit's rephrase: not asked
            ),
        }
    )
    edit_all(editor, [first, second])
    unedited = [fact.phrasings[0] for fact in right_facts()[:5]]
    suite = Suite("s", [record, second.model_copy(update={"locality": ()})], unedited)
    figures = evaluate(editor, suite).figures
    assert (figures["portability/easy"].patched.right, figures["portability/hard"].patched.right) == (1, 0)
    assert figures["portability/easy"].base.right == 1
    assert figures["portability"].patched.total == 2
    assert "near-miss/same-relation" not in figures
    assert figures["near-miss/same-subject"].patched.total == 1
    assert figures["robustness/prefix"].patched.total == figures["robustness/second-turn"].patched.total == 2
    assert figures["drift-changed"].patched.total == figures["drift-kl"].patched.total == 5
    quick = evaluate(editor, suite, quick=True)
    assert {name.split("/")[0] for name in quick.figures} == set(PAPER + SENTENCES)
    assert {sample.role for sample in quick.samples} == {"reliability", "generality", "locality"}


def test_drift_is_zero_if_no_edit_is_activated(make_editor):
    suite = Suite("s", demo_edits()[:3], [fact.phrasings[0] for fact in right_facts()[:20]])
    editor = make_editor("key", theta=0.999)
    edit_all(editor, suite.edits)
    figures = evaluate(editor, suite).figures
    assert (figures["drift-changed"].patched.right, figures["drift-kl"].patched.mean) == (0, 0.0)


def test_drift_counts_changed_outputs_if_every_prompt_activates_an_edit(make_editor):
    suite = Suite("s", demo_edits()[:3], [fact.phrasings[0] for fact in right_facts()[:20]])
    editor = make_editor("key", theta=0.001)
    edit_all(editor, suite.edits)
    found = evaluate(editor, suite)
    changed = sum(sample.patched != sample.base for sample in found.samples if sample.role == "locality")
    assert found.figures["drift-changed"].patched.right == changed > 0
    assert found.figures["drift-changed"].fired.share > 0.9
    assert found.figures["drift-kl"].patched.mean > 1e-3


def test_drift_is_measured_on_unrelated_prompts_of_the_data(make_editor):
    editor = make_editor("key")
    first, second = demo_edits()[:2]

    def drift_total(prompt):
        record = first.model_copy(update={"locality": (Neighbour(prompt=prompt, kind="unrelated"),)})
        return evaluate(editor, Suite("s", [record], [])).figures["drift-changed"].patched.total

    edit_all(editor, [first])
    assert drift_total(right_facts()[3].phrasings[0]) == 1
    edit_all(editor, [second])
    assert drift_total(second.prompt) == 0  # an edit's prompt
