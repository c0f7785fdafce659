"""An edit taken back is an edit never made: answers, logits, theta and biases, to the bit."""

from __future__ import annotations

import json

import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.editing.editor import FROM_LIBRARY, Editor
from scen_cli.editing.revert_edits import revert_edits
from scen_cli.errors import UsageError
from scen_cli.evaluation.threshold_table import Calibration
from scen_cli.neurons.biases import check_they_call_themselves
from scen_cli.neurons.index import Index
from scen_cli.project.check import verify
from scen_cli.project.project import Project
from tests.conftest import edit_all

RECORDS = demo_edits()[:8]
PROMPTS = [text for record in RECORDS for text in (record.prompt, *record.rephrases[:1])]
FAST = {"expert_steps": 4, "extra_steps": 12, "prompt_augmentations": 0, "require_learned": 0}


def logits_of(editor, prompts):
    """What the edited model gives at the end of each prompt, and the edit that it calls."""
    found = []
    for prompt in prompts:
        ids, mask = editor.encode([prompt])
        with torch.inference_mode(), editor.snapshot() as patch, patch.deciding(editor.model, ids, mask) as decided:
            out = editor.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, -1]
        found.append((patch.edits_of(decided.choice), out))
    return found


def state_of(editor):
    """All that routing and experts come to."""
    ledger = editor.project.ledger
    now = ledger.threshold()
    edits = ledger.edits("active")
    return {
        "theta": (now.theta, now.false_activation, now.expected, now.low, now.high, now.prompts),
        "edits": [(edit.prompt, edit.target, edit.sha256, edit.bias, edit.activation) for edit in edits],
        "neurons": editor.project.w_merge().neurons.tobytes(),
    }


def same_logits(left, right):
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(left, right, strict=True))


@pytest.mark.parametrize("recipe", ["closed-form", "joint", "key", "paper"])
def test_edit_then_revert_is_never_having_edited(make_editor, recipe):
    editor = make_editor(recipe, **(FAST if recipe in ("closed-form", "joint") else {}))
    edit_all(editor, RECORDS[:3])
    before, logits = state_of(editor), logits_of(editor, PROMPTS)
    for record in RECORDS[3:5]:
        edit_all(editor, [record])
    changed = [edit for edit, _ in logits_of(editor, PROMPTS)]
    assert changed != [edit for edit, _ in logits]
    with editor.project.writing():
        revert_edits(editor.project, 4, 5)
    assert state_of(editor) == before
    after = logits_of(editor, PROMPTS)
    assert [edit for edit, _ in after] == [edit for edit, _ in logits]
    assert same_logits(after, logits)
    assert verify(editor.project, deep=True) == []


@pytest.mark.parametrize("recipe", ["closed-form", "key"])
def test_an_edit_from_the_middle_leaves_the_others_as_if_it_had_never_been(make_editor, recipe):
    changes = FAST if recipe == "closed-form" else {}
    editor, without = make_editor(recipe, **changes), make_editor(recipe, **changes)
    near = RECORDS[1].model_copy(update={"prompt": RECORDS[0].rephrases[0], "subject": None})
    edit_all(editor, [RECORDS[0], near, *RECORDS[2:5]])
    edit_all(without, [RECORDS[0], *RECORDS[2:5]])
    with editor.project.writing():
        revert_edits(editor.project, 2)
    mine, others = state_of(editor), state_of(without)
    assert mine["theta"] == others["theta"]
    assert [edit[:2] + edit[3:] for edit in mine["edits"]] == [edit[:2] + edit[3:] for edit in others["edits"]]
    assert mine["neurons"] == others["neurons"]
    assert same_logits(logits_of(editor, PROMPTS), logits_of(without, PROMPTS))
    assert verify(editor.project) == []


def test_the_bias_that_a_neighbour_raised_falls_when_it_goes(make_editor):
    """A later edit keeps off an earlier one's prompt by its bias, and no longer has to once that is gone."""
    editor, without = make_editor("closed-form", **FAST), make_editor("closed-form", **FAST)
    first = RECORDS[0].model_copy(update={"subject": None})
    second = first.model_copy(update={"prompt": RECORDS[0].rephrases[6], "train_rephrases": (RECORDS[0].prompt,)})
    edit_all(editor, [first, second, RECORDS[3]])
    edit_all(without, [second, RECORDS[3]])
    raised = editor.project.find(2).bias
    with editor.project.writing():
        revert_edits(editor.project, 1)
    assert editor.project.find(2).bias == without.project.find(1).bias < raised
    assert editor.project.find(2).activation == without.project.find(1).activation
    assert editor.project.ledger.theta() == without.project.ledger.theta()
    assert verify(editor.project) == []


def test_reverting_all_edits_leaves_the_theta_that_was_chosen(make_editor):
    editor = make_editor("closed-form", **FAST)
    theta = editor.project.ledger.threshold()
    edit_all(editor, RECORDS[:2])
    edit_all(editor, RECORDS[2:3])
    with editor.project.writing():
        revert_edits(editor.project, 1)
        revert_edits(editor.project, 3, 2)
    assert editor.project.ledger.threshold() == theta
    assert editor.answer([RECORDS[0].prompt]).edits == [None]


def test_a_superseded_edit_is_in_force_again_to_the_bit(make_editor):
    editor = make_editor("closed-form", **FAST)
    edit_all(editor, RECORDS[:3])
    before, logits = state_of(editor), logits_of(editor, PROMPTS)
    edit_all(editor, [RECORDS[1].model_copy(update={"target": RECORDS[2].target})])
    assert editor.project.find(2).state == "superseded"
    with editor.project.writing():
        revert_edits(editor.project, 4)
    assert state_of(editor) == before
    assert same_logits(logits_of(editor, PROMPTS), logits)


def test_an_edit_and_the_one_it_superseded_are_taken_back_at_once(make_editor):
    editor = make_editor("key")
    edit_all(editor, RECORDS[:1])
    edit_all(editor, [RECORDS[0].model_copy(update={"target": "Mars"})])
    with pytest.raises(UsageError, match="edit 1 is not active: it is superseded"), editor.project.writing():
        revert_edits(editor.project, 1)
    with editor.project.writing():
        revert_edits(editor.project, 1, 2)
    assert [edit.state for edit in editor.project.ledger.edits()] == ["reverted", "reverted"]
    assert verify(editor.project, deep=True) == []


def test_a_killed_run_that_goes_on_ends_with_the_theta_of_one_that_was_not(make_editor, demo_base):
    """theta and biases do not depend on which process computed them, nor on how many edits it computed at once."""
    one, several = make_editor("closed-form", **FAST), make_editor("closed-form", **FAST)
    edit_all(one, RECORDS)
    for record in RECORDS:
        again = Editor(Project(several.project.folder), base=demo_base)
        edit_all(again, [record])
        again.detach()
    assert state_of(one) == state_of(several)


def test_theta_stays_where_a_file_that_it_depends_on_is_damaged(make_editor):
    editor = make_editor("closed-form", **FAST)
    edit_all(editor, RECORDS[:4])
    (editor.project.folder / editor.project.find(3).file).write_bytes(b"")
    theta = editor.project.ledger.theta()
    with editor.project.writing():
        assert revert_edits(editor.project, 1)[0].state == "reverted"
    assert editor.project.ledger.theta() == theta


def neighbours():
    """Two edits of one question in other words: the second's bias is raised by the first's key."""
    first = RECORDS[0].model_copy(update={"subject": None})
    return first, first.model_copy(update={"prompt": RECORDS[0].rephrases[6], "train_rephrases": (RECORDS[0].prompt,)})


def test_the_bias_of_a_superseded_edit_is_kept_up_too(make_editor):
    """It may come back when its neighbour has long gone."""
    editor, without = make_editor("closed-form", **FAST), make_editor("closed-form", **FAST)
    first, second = neighbours()
    edit_all(editor, [first, second, second.model_copy(update={"target": "Mars"})])
    edit_all(without, [second])
    with editor.project.writing():
        revert_edits(editor.project, 1)
        revert_edits(editor.project, 3)
    assert editor.project.find(2).state == "active"
    assert editor.project.find(2).bias == without.project.find(1).bias
    assert verify(editor.project) == []


def test_the_bias_beside_a_neighbour_that_came_back(make_editor):
    editor, without = make_editor("closed-form", **FAST), make_editor("closed-form", **FAST)
    first, second = neighbours()
    other = first.model_copy(update={"target": "Mars"})
    edit_all(editor, [first, other, second, second.model_copy(update={"target": "Mars"})])
    edit_all(without, [first, second])
    with editor.project.writing():
        revert_edits(editor.project, 2)
        revert_edits(editor.project, 4)
    assert [edit.id for edit in editor.project.ledger.edits("active")] == [1, 3]
    assert editor.project.find(3).bias == without.project.find(2).bias
    assert verify(editor.project) == []


def test_a_neighbour_whose_key_is_lost_leaves_no_bias_behind(make_editor):
    editor, without = make_editor("closed-form", **FAST), make_editor("closed-form", **FAST)
    first, second = neighbours()
    edit_all(editor, [first, second])
    edit_all(without, [second])
    edit_all(editor, RECORDS[3:4])
    (editor.project.folder / editor.project.find(1).file).write_bytes(b"")
    with editor.project.writing():
        revert_edits(editor.project, 1)
    assert editor.project.find(2).bias == without.project.find(1).bias


def test_an_edit_does_not_come_back_beside_a_newer_one_of_its_prompt(make_editor):
    editor = make_editor("key")
    edit_all(editor, RECORDS[:1])
    with editor.project.writing():
        [other] = editor.edit_together([(RECORDS[1], FROM_LIBRARY)], superseding=[(1,)])
    assert (other.id, editor.project.find(1).superseded_by) == (2, 2)
    edit_all(editor, [RECORDS[0].model_copy(update={"target": "Mars"})])
    with editor.project.writing():
        revert_edits(editor.project, 2)
    assert [edit.id for edit in editor.project.ledger.edits("active")] == [3]
    assert editor.project.find(1).superseded_by == 3
    assert verify(editor.project, deep=True) == []
    with editor.project.writing():
        revert_edits(editor.project, 3)
    assert [edit.id for edit in editor.project.ledger.edits("active")] == [1]
    assert verify(editor.project, deep=True) == []


def test_the_command_does_not_say_that_an_edit_is_back_whose_prompt_has_a_newer_one(make_editor, scen):
    editor = make_editor("key")
    edit_all(editor, RECORDS[:1])
    with editor.project.writing():
        editor.edit_together([(RECORDS[1], FROM_LIBRARY)], superseding=[(1,)])
    edit_all(editor, [RECORDS[0].model_copy(update={"target": "Mars"})])
    editor.detach()
    assert editor.project.find(1).superseded_by == 2
    told = json.loads(scen("revert", "2", "--json", "--dir", editor.project.folder).stdout)
    assert told["reverted"] == [{"edit": 2, "state": "reverted", "in_force_again": []}]
    told = json.loads(scen("revert", "3", "--json", "--dir", editor.project.folder).stdout)
    assert told["reverted"] == [{"edit": 3, "state": "reverted", "in_force_again": [1]}]


def test_an_edit_comes_back_beside_one_of_the_same_question_that_was_made_since(make_editor):
    """The newer one's bias leaves it its prompt, as if it had been there all the time."""
    editor, without = make_editor("closed-form", **FAST), make_editor("closed-form", **FAST)
    first, twin = neighbours()
    edit_all(editor, [first])
    with editor.project.writing():
        editor.edit_together([(RECORDS[3], FROM_LIBRARY)], superseding=[(1,)])
    edit_all(editor, [twin])
    edit_all(without, [first, twin])
    with editor.project.writing():
        revert_edits(editor.project, 2)
    assert editor.answer([first.prompt, twin.prompt]).edits == [1, 3]
    assert editor.project.find(3).bias == without.project.find(2).bias
    assert verify(editor.project) == []


def test_what_comes_back_and_takes_anothers_prompt_is_refused_with_both_named(make_editor):
    editor = make_editor("closed-form", **FAST)
    first, twin = neighbours()
    edit_all(editor, [first, twin])
    index = Index(editor.project)
    index.load()
    check_they_call_themselves(index, [editor.project.find(1)])
    index.set_biases({2: (0.5, 0.5)})  # as if nothing had seen to it
    with pytest.raises(UsageError, match="edit 1 .* would be active again, .* edit 2"):
        check_they_call_themselves(index, [editor.project.find(1)])


def test_theta_of_no_edit_is_the_first_even_after_a_calibration(make_editor):
    editor = make_editor("closed-form", **FAST, theta=0.05)
    edit_all(editor, RECORDS[:3])
    with editor.project.writing():
        editor.project.set_threshold(Calibration(editor).choice(0.05).threshold)
        revert_edits(editor.project, 1, 2, 3)
    now = editor.project.ledger.threshold()
    assert (now.theta, now.false_activation) == (0.05, 0.05)


def test_what_could_not_be_changed_is_noted(make_editor):
    editor = make_editor("closed-form", **FAST)
    edit_all(editor, RECORDS[:4])
    (editor.project.folder / editor.project.find(3).file).write_bytes(b"")
    with editor.project.writing():
        revert_edits(editor.project, 1)
    assert "theta and biases stay as they were" in editor.project.ledger.changes()[-1]["detail"]["note"]
