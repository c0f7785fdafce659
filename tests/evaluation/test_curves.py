"""Curves against the long way: really making fewer edits, really setting another threshold."""

from __future__ import annotations

import pytest

from scen_cli.data.suites import Suite, demo_edits, load_suite
from scen_cli.evaluation.curves import confusions, thetas_around
from scen_cli.evaluation.evaluate_project import evaluate, sweep_theta
from scen_cli.evaluation.samples import Sample
from tests.conftest import edit_all


@pytest.fixture(scope="module")
def suite():
    return Suite("s", demo_edits()[:60], load_suite("demo").locality[:60])


def test_retention_is_what_a_project_of_so_many_edits_gives(make_editor, suite):
    """With untrained neurons, so that each later edit takes some prompts of the earlier ones."""
    grown = make_editor("paper", neuron_steps=0, theta=0.01)
    edit_all(grown, suite.edits[:40])
    found = evaluate(grown, suite)
    curve = found.curves["retention"]
    assert [point["edits"] for point in curve] == [10, 40]
    young = make_editor("paper", neuron_steps=0, theta=0.01)
    edit_all(young, suite.edits[:10])
    then = evaluate(young, suite, quick=True).figures["reliability"].patched
    assert (curve[0]["reliability"]["right"], curve[0]["reliability"]["total"]) == (then.right, then.total)
    assert sum(sample.right for sample in found.samples[:10]) < then.right  # the same ten, after all forty
    assert curve[-1]["reliability"]["right"] == found.figures["reliability"].patched.right


def test_forgetting_shows(make_editor):
    """A later edit that claims everything takes the prompts of the earlier ones."""
    editor = make_editor("paper", neuron_steps=0, theta=0.01)  # untrained neurons: whose prompt is whose is chance
    edit_all(editor, demo_edits()[:30])
    found = evaluate(editor, Suite("s", demo_edits()[:30], []))
    assert found.curves["retention"][-1]["reliability"]["share"] < 0.5
    own, any_fired = found.figures["reliability"].routed, found.figures["reliability"].fired
    assert own.right < any_fired.right == 30
    failed = make_editor("key", expert_steps=1)
    edit_all(failed, demo_edits()[:3])
    curve = evaluate(failed, Suite("s", demo_edits()[:3], [])).curves["retention"]
    assert curve == [{"edits": 3, "reliability": curve[0]["reliability"]}]
    assert curve[0]["reliability"]["right"] == 0


def test_a_swept_threshold_is_a_set_one(make_editor, suite):
    thetas = [0.3, 0.65, 0.85, 0.93]
    editor = make_editor("paper")
    edit_all(editor, suite.edits[:20])
    swept = sweep_theta(editor, suite, thetas, "greedy")
    assert [point["theta"] for point in swept] == thetas
    for point in swept:
        editor.project.ledger.db["thresholds"].insert({"theta": point["theta"], "chosen_by": "test", "created": "now"})
        figures = evaluate(editor, suite, quick=True).figures
        for role in ("reliability", "generality", "locality"):
            assert point[role]["right"] == figures[role].patched.right
    assert swept[0]["locality"]["right"] < swept[-1]["locality"]["right"]
    assert swept[0]["generality"]["right"] > swept[-1]["generality"]["right"]


def test_thetas_stay_thresholds():
    assert thetas_around(0.65)[0] == 0.55
    assert thetas_around(0.65)[-1] == 0.75
    assert len(thetas_around(0.65)) == 21
    assert max(thetas_around(0.95)) == 0.99
    assert min(thetas_around(0.05)) == 0.01


def test_the_activation_map_is_bright_on_its_diagonal(edited):
    found = evaluate(edited, load_suite("demo")).curves["activations"]
    assert found["edits"] == found["experts"] == list(range(1, 41))
    for place, row in enumerate(found["activations"]):
        assert max(row) == row[place] == pytest.approx(1.0, abs=1e-3)  # the key recipe: the cosine with itself


def test_who_takes_whose_prompts():
    def sample(fired, expected_edit, role="generality"):
        return Sample(role, "", "p", "w", "b", "w", expected_edit, expected_edit, fired, True)

    samples = [sample(2, 1), sample(2, 1), sample(1, 1), sample(None, 1), sample(3, None, "locality")]
    samples.append(sample(2, 1, "portability"))  # what follows from an edit may well call another
    assert confusions(samples) == [{"edit": 2, "of": 1, "prompts": 2}, {"edit": 3, "of": None, "prompts": 1}]
