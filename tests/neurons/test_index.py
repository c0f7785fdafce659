"""The index: every active edit's prompt routes to that edit, and theta follows the active edits."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.data.suites import demo_edits
from scen_cli.errors import UsageError
from scen_cli.neurons.admission import admit
from scen_cli.neurons.calibration import calibrate
from scen_cli.neurons.index import Index
from scen_cli.project.check import verify
from scen_cli.project.edit_files import EditTensors
from scen_cli.project.project import TrainedEdit, TrainingStats
from tests.conftest import edit_all, revert, writing

FAST = {"expert_steps": 1, "extra_steps": 0, "prompt_augmentations": 0, "require_learned": False}


def every_edit_routes_to_itself(editor) -> bool:
    active = editor.project.ledger.edits("active")
    return editor.route([edit.prompt for edit in active]).edits == [edit.expert for edit in active]


@pytest.mark.parametrize("recipe", ["closed-form", "joint"])
def test_every_active_edit_routes_to_itself_after_each_commit(make_editor, recipe):
    editor = make_editor(recipe, **FAST)
    records = demo_edits()[:12]
    for record in records:
        edit_all(editor, [record])
        assert every_edit_routes_to_itself(editor)
    revert(editor.project, 3)
    edit_all(editor, [records[4].model_copy(update={"target": "Oslo"})])  # supersedes edit 5
    assert editor.project.find(5).state == "superseded"
    assert every_edit_routes_to_itself(editor)
    assert editor.route([records[2].prompt]).edits == [None]


def test_theta_after_edits_and_reverts_equals_a_calibration_from_scratch(make_editor):
    editor = make_editor("closed-form", **FAST, theta=0.1, subject_filter=False)
    edit_all(editor, demo_edits()[:15])
    revert(editor.project, 4, 9)
    edit_all(editor, demo_edits()[15:25])
    threshold = editor.project.ledger.threshold()
    fresh = Index(editor.project)
    fresh.load()
    again = calibrate(fresh.on_guard.all().amax(dim=0), 0.01, 0.1, fresh.highest_theta)
    assert threshold.theta == pytest.approx(again.theta, abs=1e-6)
    assert threshold.theta > 0.1
    assert (threshold.n_guard, threshold.false_activation) == (1000, 0.01)
    assert 0 < threshold.fpr_low < threshold.fpr_expected <= 0.01 < threshold.fpr_high
    prompts, _keys, _rows = editor.project.guard().split("calibration")
    routed = sum(edit is not None for edit in editor.route(prompts).edits)
    assert routed <= 0.01 * len(prompts) + 5  # up to 5 may be the edits' own prompts


def test_later_edits_leave_earlier_neurons_and_routes_unchanged(make_editor):
    editor = make_editor("closed-form", **FAST)
    first = demo_edits()[:10]
    edit_all(editor, first)
    neurons = editor.project.w_merge().neurons.copy()
    edit_all(editor, demo_edits()[10:40])
    assert (editor.project.w_merge().neurons[:10] == neurons).all()
    assert editor.route([record.prompt for record in first]).edits == list(range(1, 11))


def test_the_order_of_edits_changes_no_route(make_editor):
    records = demo_edits()[:20]
    forward, backward = make_editor("closed-form", **FAST), make_editor("closed-form", **FAST)
    edit_all(forward, records)
    edit_all(backward, records[::-1])
    prompts = [text for record in records for text in (record.prompt, *record.rephrases)]
    routes = [edit and edit - 1 for edit in forward.route(prompts).edits]
    assert routes == [edit and 20 - edit for edit in backward.route(prompts).edits]
    assert forward.project.ledger.theta() == pytest.approx(backward.project.ledger.theta(), abs=1e-6)


def test_an_edit_with_the_key_of_an_active_edit_is_rejected(make_editor):
    editor = make_editor("closed-form", **FAST)
    record = EditRecord(prompt="Where was Ada born?", target="Riga")
    edit_all(editor, [record])
    keys = editor.keys([record.prompt])
    with pytest.raises(UsageError, match=r"collides with edit 1 \('Where was Ada born\?' -> 'Riga'\)"):
        admit(editor.index, keys, keys[:0], [("Where was Ada born??", None)], 0, set())
    assert every_edit_routes_to_itself(editor)


def test_a_near_edit_gets_a_bias_and_both_route_to_themselves(make_editor):
    editor = make_editor("closed-form", **FAST)
    edit_all(editor, [EditRecord(prompt="Where was Ada Vanoley born?", target="Riga")])
    edit_all(editor, [EditRecord(prompt="Where was Ada Vanoley born", target="Oslo")])
    assert every_edit_routes_to_itself(editor)
    second = editor.project.find(2)
    assert second.activation == pytest.approx(1 - second.bias, abs=1e-5)


def test_a_neuron_too_strong_on_another_edits_key_gets_more_bias(make_editor):
    """The other edit's own activation is only 0.6 here, as it may be among many similar prompts."""
    editor = make_editor("closed-form", **FAST)
    edit_all(editor, [EditRecord(prompt="Where was Ada Vanoley born?", target="Riga")])
    index = editor.index
    index.own_activations.all()[0], index.biases[0] = 0.6, 0.4
    key = editor.keys(["Where was Ada Vanoley born"])
    candidate = admit(index, key, key[:0], [("Where was Ada Vanoley born", None)], 0, set())
    on_other = float(index.keys.all()[0] @ candidate.fit.neuron) - candidate.bias
    assert on_other == pytest.approx(0.6 - 0.01, abs=1e-5)
    assert float(candidate.on_keys[0]) > on_other


def test_refitted_neurons_are_stored_with_their_cause_and_reverted_with_it(make_editor):
    project = make_editor("joint").project
    where, training = SourceLine("test", 1), TrainingStats(0, 0.0)
    expert, neurons = np.zeros((96, 768), np.float32), np.eye(3, 768, dtype=np.float32)
    refits = [None, None, (neurons[[2]], np.array([1]))]
    with project.writing():
        for number, refit in enumerate(refits):
            trained = TrainedEdit(EditRecord(prompt=f"Question {number}?", target="x"), where, True, 0.9)
            tensors = EditTensors(expert, neurons[number], neurons[number], *(refit or (None, None)))
            project.commit([trained], training, tensors)
        with writing(project):
            project.merge()
    assert (project.w_merge().neurons == neurons[[2, 1, 2]]).all()
    (project.folder / "merged.safetensors").unlink()  # rebuilt from the edit files
    assert (project.w_merge().neurons == neurons[[2, 1, 2]]).all()
    assert verify(project) == []
    revert(project, 3)
    assert (project.w_merge().neurons == neurons[:2]).all()


def test_an_edit_whose_last_sentence_is_another_edit_routes_to_itself(make_editor):
    editor = make_editor("closed-form", **FAST)
    question = "Where was Ivan Gromener born?"
    records = [
        EditRecord(prompt=question, target="Seoul"),
        EditRecord(prompt=f"My name is Leo Tusewitz and I live there. {question}", target="Kenya"),
    ]
    edit_all(editor, records)
    assert every_edit_routes_to_itself(editor)
    assert editor.route([f"Hello to you all. {question}"]).edits == [1]


def test_joint_rejects_an_edit_that_collides_with_an_earlier_one(make_editor):
    editor = make_editor("joint", **FAST)
    spellings = ["Where was Ivan Gromener born?", "Where was Ivan Gromener born ?", "Where was Ivan Gromener born"]
    edit_all(editor, [EditRecord(prompt=spellings[0], target="Seoul")])
    for prompt in spellings[1:]:
        with suppress(UsageError):
            edit_all(editor, [EditRecord(prompt=prompt, target="Seoul")])
        assert every_edit_routes_to_itself(editor)


def test_a_failed_record_supersedes_nothing(make_editor):
    editor = make_editor("closed-form", edits_per_expert=2, expert_steps=20, extra_steps=0, prompt_augmentations=0)
    edit_all(editor, [demo_edits()[0]])
    hopeless = EditRecord(prompt="Where is it?", target="Zz qq xx yy ww vv uu")
    with editor.project.writing():
        pair = [(hopeless, SourceLine("t", 1)), (demo_edits()[1], SourceLine("t", 2))]
        failed, made = editor.edit_group(pair, [(1,), ()])
    assert (failed.state, made.state, editor.project.find(1).state) == ("failed", "active", "active")
