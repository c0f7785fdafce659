"""Curves equal their definitions: a project with fewer edits, a project with another threshold."""

from __future__ import annotations

import pytest

from scen_cli.data.suites import Suite, demo_edits, load_suite
from scen_cli.evaluation.curves import confusions, thetas_around
from scen_cli.evaluation.evaluate_project import evaluate, sweep_theta
from scen_cli.evaluation.samples import Sample
from tests.conftest import edit_all

LOCALITY = load_suite("demo").locality


@pytest.mark.slow
def test_retention_equals_the_reliability_of_a_project_with_fewer_edits(make_editor):
    """Neurons are not trained: routing is by chance, so that later edits answer prompts of earlier edits."""
    suite = Suite("s", demo_edits()[:20], LOCALITY[:10])
    grown = make_editor("paper", neuron_steps=0, theta=0.01)
    edit_all(grown, suite.edits)
    found = evaluate(grown, suite)
    curve, figure = found.curves["retention"], found.figures["reliability"]
    assert [point["edits"] for point in curve] == [10, 20]
    young = make_editor("paper", neuron_steps=0, theta=0.01)
    edit_all(young, suite.edits[:10])
    early = evaluate(young, suite, quick=True).figures["reliability"].patched
    assert (curve[0]["reliability"]["right"], curve[0]["reliability"]["total"]) == (early.right, early.total)
    assert sum(sample.right for sample in found.samples[:10]) < early.right  # the same 10 edits, after all 20
    assert curve[-1]["reliability"]["right"] == figure.patched.right
    assert curve[-1]["reliability"]["share"] < 0.5
    assert figure.routed.right < figure.fired.right == 20


def test_retention_of_failed_edits_is_zero(make_editor):
    failed = make_editor("key", expert_steps=1)
    edit_all(failed, demo_edits()[:3])
    curve = evaluate(failed, Suite("s", demo_edits()[:3], [])).curves["retention"]
    assert curve == [{"edits": 3, "reliability": curve[0]["reliability"]}]
    assert curve[0]["reliability"]["right"] == 0


def test_theta_sweep_equals_setting_each_threshold(make_editor):
    suite, thetas = Suite("s", demo_edits()[:12], LOCALITY[:40]), [0.3, 0.65, 0.85, 0.93]
    editor = make_editor("paper")
    edit_all(editor, suite.edits)
    swept = sweep_theta(editor, suite, thetas, "greedy")
    assert [point["theta"] for point in swept] == thetas
    for point in swept:
        editor.project.ledger.db["thresholds"].insert({"theta": point["theta"], "chosen_by": "test", "created": "now"})
        figures = evaluate(editor, suite, quick=True).figures
        for role in ("reliability", "generality", "locality"):
            assert point[role]["right"] == figures[role].patched.right
    assert swept[0]["locality"]["right"] < swept[-1]["locality"]["right"]
    assert swept[0]["generality"]["right"] > swept[-1]["generality"]["right"]


def test_thetas_around_stay_between_0_and_1():
    assert thetas_around(0.65)[0] == 0.55
    assert thetas_around(0.65)[-1] == 0.75
    assert len(thetas_around(0.65)) == 21
    assert max(thetas_around(0.95)) == 0.99
    assert min(thetas_around(0.05)) == 0.01


def test_the_activation_map_is_largest_on_its_diagonal(demo_evaluation):
    found = demo_evaluation.curves["activations"]
    assert found["edits"] == found["experts"] == list(range(1, 41))
    for position, row in enumerate(found["activations"]):
        assert max(row) == row[position] == pytest.approx(1.0, abs=1e-3)  # recipe `key`: the cosine with itself


def test_confusions_counts_prompts_that_another_edit_answered():
    def sample(routed_edit, expected_edit, role="generality"):
        return Sample(role, "", "p", "w", "b", "w", expected_edit, expected_edit, routed_edit, True)

    samples = [sample(2, 1), sample(2, 1), sample(1, 1), sample(None, 1), sample(3, None, "locality")]
    samples.append(sample(2, 1, "portability"))  # what follows from an edit may be another edit
    assert confusions(samples) == [{"edit": 2, "of": 1, "prompts": 2}, {"edit": 3, "of": None, "prompts": 1}]
