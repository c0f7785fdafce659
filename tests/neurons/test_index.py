"""The index of a project: every active edit calls itself, and theta follows the edits."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.data.suites import demo_edits
from scen_cli.errors import UsageError
from scen_cli.neurons.calibration import calibrate
from scen_cli.neurons.index import Index
from scen_cli.project.check import verify
from scen_cli.project.project import TrainedEdit, TrainingStats
from scen_cli.project.tensor_files import EditTensors
from tests.conftest import edit_all, take_back, writing

FAST = {"expert_steps": 1, "extra_steps": 0, "prompt_augmentations": 0, "require_learned": False}


def calls_itself(editor) -> bool:
    active = editor.project.ledger.edits("active")
    return editor.route([edit.prompt for edit in active]).edits == [edit.expert for edit in active]


@pytest.mark.parametrize("recipe", ["closed-form", "joint"])
def test_every_active_edit_calls_itself_after_each_commit(make_editor, recipe):
    editor = make_editor(recipe, **FAST)
    records = demo_edits()[:12]
    for record in records:
        edit_all(editor, [record])
        assert calls_itself(editor)
    take_back(editor.project, 3)
    edit_all(editor, [records[4].model_copy(update={"target": "Oslo"})])  # supersedes edit 5
    assert editor.project.find(5).state == "superseded"
    assert calls_itself(editor)
    assert editor.route([records[2].prompt]).edits == [None]


def test_an_edit_is_recalibrated_for_and_a_fresh_index_agrees(make_editor):
    """Step by step, with a revert between, theta is what a calibration from nothing gives."""
    editor = make_editor("closed-form", **FAST, theta=0.1, subject_filter=False)
    edit_all(editor, demo_edits()[:15])
    take_back(editor.project, 4, 9)
    edit_all(editor, demo_edits()[15:25])
    threshold = editor.project.ledger.threshold()
    fresh = Index(editor.project)
    fresh.load()
    again = calibrate(fresh.on_guard.all().amax(dim=0), 0.01, 0.1, fresh.limit)
    assert threshold.theta == pytest.approx(again.theta, abs=1e-6)
    assert threshold.theta > 0.1
    assert (threshold.prompts, threshold.false_activation) == (1000, 0.01)
    assert 0 < threshold.low < threshold.expected <= 0.01 < threshold.high
    prompts, _keys, _rows = editor.project.guard().split("calibration")
    fired = sum(edit is not None for edit in editor.route(prompts).edits)
    assert fired <= 0.01 * len(prompts) + 5  # all but the prompts that are edits' own


def test_a_later_edit_lowers_no_earlier_ones_claim(make_editor):
    """Retention: what the first edits' prompts call after 40 edits is what they called after 10."""
    editor = make_editor("closed-form", **FAST)
    first = demo_edits()[:10]
    edit_all(editor, first)
    neurons = editor.project.w_merge().neurons.copy()
    edit_all(editor, demo_edits()[10:40])
    assert (editor.project.w_merge().neurons[:10] == neurons).all()
    assert editor.route([record.prompt for record in first]).edits == list(range(1, 11))


def test_the_order_of_edits_changes_no_route(make_editor):
    records = demo_edits()[:20]
    one, other = make_editor("closed-form", **FAST), make_editor("closed-form", **FAST)
    edit_all(one, records)
    edit_all(other, records[::-1])
    prompts = [text for record in records for text in (record.prompt, *record.rephrases)]
    straight = [edit and edit - 1 for edit in one.route(prompts).edits]
    assert straight == [edit and 20 - edit for edit in other.route(prompts).edits]
    assert one.project.ledger.theta() == pytest.approx(other.project.ledger.theta(), abs=1e-6)


def test_two_edits_with_one_key_cannot_both_stand(make_editor):
    """These differ in what the template cuts off: the base cannot tell them apart."""
    editor = make_editor("closed-form", **FAST)
    record = EditRecord(prompt="Where was Ada born?", target="Riga")
    edit_all(editor, [record])
    twin = editor.index.admit
    keys = editor.keys([record.prompt])
    with pytest.raises(Exception, match=r"edit 1 \('Where was Ada born\?' -> 'Riga'\) and it cannot both stand"):
        twin(keys, keys[:0], [("Where was Ada born??", None)], 0, set())
    assert calls_itself(editor)


def test_a_near_edit_is_let_in_with_a_bias_that_leaves_the_other_its_prompt(make_editor):
    editor = make_editor("closed-form", **FAST)
    edit_all(editor, [EditRecord(prompt="Where was Ada Vanoley born?", target="Riga")])
    edit_all(editor, [EditRecord(prompt="Where was Ada Vanoley born", target="Oslo")])
    assert calls_itself(editor)
    second = editor.project.find(2)
    assert second.activation == pytest.approx(1 - second.bias, abs=1e-5)


def test_a_neuron_that_would_take_another_edits_prompt_gets_more_bias(make_editor):
    """The other edit gives its own neuron only 0.6 here, as it may in a dense crowd."""
    editor = make_editor("closed-form", **FAST)
    edit_all(editor, [EditRecord(prompt="Where was Ada Vanoley born?", target="Riga")])
    index = editor.index
    index.own.all()[0], index.biases[0] = 0.6, 0.4
    key = editor.keys(["Where was Ada Vanoley born"])
    admitted = index.admit(key, key[:0], [("Where was Ada Vanoley born", None)], 0, set())
    on_other = float(index.keys.all()[0] @ admitted.fit.neuron) - admitted.bias
    assert on_other == pytest.approx(0.6 - 0.01, abs=1e-5)
    assert float(admitted.on_keys[0]) > on_other


def test_neurons_fitted_again_for_another_are_kept_with_it_and_go_with_it(make_editor):
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
    (project.folder / "merged.safetensors").unlink()  # from the files alone
    assert (project.w_merge().neurons == neurons[[2, 1, 2]]).all()
    assert verify(project) == []
    take_back(project, 3)
    assert (project.w_merge().neurons == neurons[:2]).all()


def test_an_edit_whose_last_sentence_is_another_edit_still_calls_itself(make_editor):
    editor = make_editor("closed-form", **FAST)
    question = "Where was Ivan Gromener born?"
    records = [
        EditRecord(prompt=question, target="Seoul"),
        EditRecord(prompt=f"My name is Leo Tusewitz and I live there. {question}", target="Kenya"),
    ]
    edit_all(editor, records)
    assert calls_itself(editor)
    assert editor.route([f"Hello to you all. {question}"]).edits == [1]


def test_joint_neurons_that_would_take_earlier_prompts_are_refused(make_editor):
    editor = make_editor("joint", **FAST)
    spellings = ["Where was Ivan Gromener born?", "Where was Ivan Gromener born ?", "Where was Ivan Gromener born"]
    edit_all(editor, [EditRecord(prompt=spellings[0], target="Seoul")])
    for prompt in spellings[1:]:
        with suppress(UsageError):
            edit_all(editor, [EditRecord(prompt=prompt, target="Seoul")])
        assert calls_itself(editor)


def test_a_failed_record_takes_no_edits_place(make_editor):
    editor = make_editor("closed-form", edits_per_expert=2, expert_steps=20, extra_steps=0, prompt_augmentations=0)
    edit_all(editor, [demo_edits()[0]])
    hopeless = EditRecord(prompt="Where is it?", target="Zz qq xx yy ww vv uu")
    with editor.project.writing():
        pair = [(hopeless, SourceLine("t", 1)), (demo_edits()[1], SourceLine("t", 2))]
        failed, made = editor.edit_together(pair, [(1,), ()])
    assert (failed.state, made.state, editor.project.find(1).state) == ("failed", "active", "active")


def test_an_older_project_whose_recipe_knew_no_index_still_opens(make_editor):
    from scen_cli.recipe import Recipe

    for trained, index in ((True, "paper"), (False, "key")):
        old = Recipe().model_dump(
            exclude={"index", "key_pooling", "route_segments", "subject_filter", "prompt_augmentations"}
        )
        recipe = Recipe.model_validate({**old, "train_neuron": trained, "normalise": not trained})
        assert (recipe.index, recipe.cosine, recipe.needs_guard) == (index, not trained, False)
