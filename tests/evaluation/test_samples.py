"""Which edit of a prompt is scored, and in what order."""

from __future__ import annotations

from scen_cli.data.suites import Suite, demo_edits
from scen_cli.editing.editor import Editor
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.evaluation.samples import scored_edits
from tests.conftest import edit_all


def test_scored_edits_chooses_the_newest_try_that_counts(make_editor):
    first, second = demo_edits()[:2]
    other, another = first.model_copy(update={"target": "Cuba"}), second.model_copy(update={"target": "Cuba"})
    hasty = make_editor("key", expert_steps=1)  # its edits fail
    patient = Editor(hasty.project, base=hasty.base)
    patient.recipe = hasty.recipe.model_copy(update={"expert_steps": 10})

    def scored(*records):
        edits = hasty.project.ledger.edits()
        active = {edit.id for edit in edits if edit.state == "active"}
        return [(item.edit.id, item.edit.state) for item in scored_edits(edits, active, Suite("s", list(records), []))]

    edit_all(hasty, [first])
    assert scored(first) == [(1, "failed")]
    edit_all(patient, [first])
    assert scored(first) == [(2, "active")]
    edit_all(patient, [other])  # supersedes edit 2
    assert scored(first, other) == [(3, "active")]  # the failed edit 1 is not scored again
    edit_all(hasty, [first])  # fails, while the other target is active
    assert scored(first, other) == [(4, "failed"), (3, "active")]
    edit_all(hasty, [second])
    edit_all(patient, [another])
    assert scored(second, another) == [(6, "active")]  # the failed edit 5 is older than the active edit of its prompt


def test_samples_are_in_the_order_of_the_suite(edited):
    suite = Suite("s", list(reversed(demo_edits()[:3])), [])
    prompts = [sample.prompt for sample in evaluate(edited, suite, quick=True).samples[:3]]
    assert prompts == [record.prompt for record in suite.edits]
