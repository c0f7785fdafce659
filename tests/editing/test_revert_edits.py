"""A reverted edit leaves no trace: answers, logits, theta and biases are, to the bit, as if it had never been made."""

from __future__ import annotations

import json

import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.editing.editor import FROM_LIBRARY, Editor
from scen_cli.errors import UsageError
from scen_cli.evaluation.threshold_table import ThresholdTable
from scen_cli.neurons.admission import check_no_collision
from scen_cli.neurons.index import Index
from scen_cli.project.check import verify
from scen_cli.project.project import Project
from tests.conftest import edit_all, revert

RECORDS = demo_edits()[:8]
PROMPTS = [text for record in RECORDS for text in (record.prompt, *record.rephrases[:1])]
FAST = {"expert_steps": 4, "extra_steps": 12, "prompt_augmentations": 0, "require_learned": 0}

# Two edits of one question in other words: the key of FIRST raises the bias of SECOND.
FIRST = RECORDS[0].model_copy(update={"subject": None})
SECOND = FIRST.model_copy(update={"prompt": RECORDS[0].rephrases[6], "train_rephrases": (RECORDS[0].prompt,)})


def to_mars(record):
    """The same prompt with another target."""
    return record.model_copy(update={"target": "Mars"})


@pytest.fixture
def pair(make_editor):
    """Two editors: one to edit and revert with, one that only makes the edits that stay."""
    return make_editor("closed-form", **FAST), make_editor("closed-form", **FAST)


def supersede(editor, record, *older):
    """Make an edit that supersedes edits of other prompts."""
    with editor.project.writing():
        return editor.edit_group([(record, FROM_LIBRARY)], superseding=[older])[0]


def routes_and_logits(editor, prompts):
    """For each prompt, the edit it is routed to, and the logits of the next token."""
    routes, logits = [], []
    for prompt in prompts:
        ids, mask = editor.encode([prompt])
        with torch.inference_mode(), editor.snapshot() as patch, patch.deciding(editor.model, ids, mask) as route:
            logits.append(editor.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, -1])
        routes.append(patch.edits_of(route.choice))
    return routes, torch.stack(logits)


def state_of(editor):
    """Everything that routing and answers depend on."""
    ledger = editor.project.ledger
    threshold, edits = ledger.threshold(), ledger.edits("active")
    names = ("theta", "false_activation", "fpr_expected", "fpr_low", "fpr_high", "n_guard")
    return {
        "theta": [getattr(threshold, name) for name in names],
        "edits": [(edit.prompt, edit.target, edit.sha256, edit.bias, edit.activation) for edit in edits],
        "neurons": editor.project.w_merge().neurons.tobytes(),
    }


def active_ids(editor):
    return [edit.id for edit in editor.project.ledger.edits("active")]


@pytest.mark.parametrize("recipe", ["closed-form", "joint", "key", "paper"])
def test_revert_of_the_newest_edits_restores_the_state_before_them(make_editor, recipe):
    editor = make_editor(recipe, **(FAST if recipe in ("closed-form", "joint") else {}))
    edit_all(editor, RECORDS[:3])
    before, (routes, logits) = state_of(editor), routes_and_logits(editor, PROMPTS)
    for record in RECORDS[3:5]:
        edit_all(editor, [record])
    assert routes_and_logits(editor, PROMPTS)[0] != routes
    revert(editor.project, 4, 5)
    assert state_of(editor) == before
    routes_now, logits_now = routes_and_logits(editor, PROMPTS)
    assert routes_now == routes
    assert torch.equal(logits_now, logits)
    assert verify(editor.project, deep=True) == []


@pytest.mark.parametrize("recipe", ["closed-form", "key"])
def test_revert_of_an_earlier_edit_equals_never_having_made_it(make_editor, recipe):
    changes = FAST if recipe == "closed-form" else {}
    editor, without = make_editor(recipe, **changes), make_editor(recipe, **changes)
    near = RECORDS[1].model_copy(update={"prompt": RECORDS[0].rephrases[0], "subject": None})
    edit_all(editor, [RECORDS[0], near, *RECORDS[2:5]])
    edit_all(without, [RECORDS[0], *RECORDS[2:5]])
    revert(editor.project, 2)
    state, expected = state_of(editor), state_of(without)
    assert state["theta"] == expected["theta"]
    assert [edit[:2] + edit[3:] for edit in state["edits"]] == [edit[:2] + edit[3:] for edit in expected["edits"]]
    assert state["neurons"] == expected["neurons"]
    logits, expected_logits = routes_and_logits(editor, PROMPTS)[1], routes_and_logits(without, PROMPTS)[1]
    assert torch.equal(logits, expected_logits)
    assert verify(editor.project) == []


class TestTheta:
    def test_revert_of_all_edits_restores_the_initial_threshold(self, make_editor):
        editor = make_editor("closed-form", **FAST)
        initial = editor.project.ledger.threshold()
        edit_all(editor, RECORDS[:2])
        edit_all(editor, RECORDS[2:3])
        revert(editor.project, 1)
        revert(editor.project, 3, 2)
        assert editor.project.ledger.threshold() == initial
        assert editor.answer([RECORDS[0].prompt]).edits == [None]

    def test_revert_of_all_edits_keeps_a_rate_that_was_set(self, make_editor):
        editor = make_editor("closed-form", **FAST, theta=0.05)
        edit_all(editor, RECORDS[:3])
        with editor.project.writing():
            editor.project.set_threshold(ThresholdTable(editor).for_rate(0.05).threshold)
        revert(editor.project, 1, 2, 3)
        now = editor.project.ledger.threshold()
        assert (now.theta, now.false_activation) == (0.05, 0.05)

    def test_revert_beside_a_damaged_file_keeps_theta_and_records_why(self, make_editor):
        editor = make_editor("closed-form", **FAST)
        edit_all(editor, RECORDS[:4])
        (editor.project.folder / editor.project.find(3).file).write_bytes(b"")
        (editor.project.folder / "merged.safetensors").unlink()
        theta = editor.project.ledger.theta()
        assert revert(editor.project, 1)[0].state == "reverted"
        assert editor.project.ledger.theta() == theta
        assert "theta and biases stay as they were" in editor.project.ledger.changes()[-1]["detail"]["note"]

    @pytest.mark.parametrize("count", [4, pytest.param(8, marks=pytest.mark.slow)])
    def test_theta_and_biases_do_not_depend_on_how_many_edits_a_process_makes(self, pair, demo_base, count):
        one, several = pair
        edit_all(one, RECORDS[:count])
        for record in RECORDS[:count]:
            opened = Editor(Project(several.project.folder), base=demo_base)
            edit_all(opened, [record])
            opened.detach()
        assert state_of(one) == state_of(several)


class TestBiases:
    def test_revert_lowers_the_bias_that_a_reverted_key_had_raised(self, pair):
        editor, without = pair
        edit_all(editor, [FIRST, SECOND, RECORDS[3]])
        edit_all(without, [SECOND, RECORDS[3]])
        raised = editor.project.find(2).bias
        revert(editor.project, 1)
        assert editor.project.find(2).bias == without.project.find(1).bias < raised
        assert editor.project.find(2).activation == without.project.find(1).activation
        assert editor.project.ledger.theta() == without.project.ledger.theta()
        assert verify(editor.project) == []

    def test_revert_recomputes_the_bias_of_a_superseded_edit_too(self, pair):
        """The superseded edit is reactivated after the edit that had raised its bias is reverted."""
        editor, without = pair
        edit_all(editor, [FIRST, SECOND, to_mars(SECOND)])
        edit_all(without, [SECOND])
        revert(editor.project, 1)
        revert(editor.project, 3)
        assert editor.project.find(2).state == "active"
        assert editor.project.find(2).bias == without.project.find(1).bias
        assert verify(editor.project) == []

    def test_a_reactivated_edit_raises_the_bias_of_its_neighbour_again(self, pair):
        editor, without = pair
        edit_all(editor, [FIRST, to_mars(FIRST), SECOND, to_mars(SECOND)])
        edit_all(without, [FIRST, SECOND])
        revert(editor.project, 2)
        revert(editor.project, 4)
        assert active_ids(editor) == [1, 3]
        assert editor.project.find(3).bias == without.project.find(2).bias
        assert verify(editor.project) == []

    def test_revert_of_an_edit_with_a_lost_file_lowers_the_bias_too(self, pair):
        editor, without = pair
        edit_all(editor, [FIRST, SECOND])
        edit_all(without, [SECOND])
        edit_all(editor, RECORDS[3:4])
        (editor.project.folder / editor.project.find(1).file).write_bytes(b"")
        revert(editor.project, 1)
        assert editor.project.find(2).bias == without.project.find(1).bias

    def test_a_newer_edit_of_the_same_question_keeps_its_prompt_beside_a_reactivated_one(self, pair):
        editor, without = pair
        edit_all(editor, [FIRST])
        supersede(editor, RECORDS[3], 1)
        edit_all(editor, [SECOND])
        edit_all(without, [FIRST, SECOND])
        revert(editor.project, 2)
        assert editor.answer([FIRST.prompt, SECOND.prompt]).edits == [1, 3]
        assert editor.project.find(3).bias == without.project.find(2).bias
        assert verify(editor.project) == []

    def test_a_reactivated_edit_that_collides_with_a_newer_one_is_refused(self, make_editor):
        editor = make_editor("closed-form", **FAST)
        edit_all(editor, [FIRST, SECOND])
        index = Index(editor.project)
        index.load()
        check_no_collision(index, [editor.project.find(1)])
        index.set_biases({2: (0.5, 0.5)})  # not the bias that admission computes
        with pytest.raises(UsageError, match="would reactivate edit 1 .* collides with the newer edit 2"):
            check_no_collision(index, [editor.project.find(1)])


class TestSuperseded:
    def test_revert_reactivates_the_superseded_edit(self, make_editor):
        editor = make_editor("closed-form", **FAST)
        edit_all(editor, RECORDS[:3])
        before, (_routes, logits) = state_of(editor), routes_and_logits(editor, PROMPTS)
        edit_all(editor, [RECORDS[1].model_copy(update={"target": RECORDS[2].target})])
        assert editor.project.find(2).state == "superseded"
        revert(editor.project, 4)
        assert state_of(editor) == before
        assert torch.equal(routes_and_logits(editor, PROMPTS)[1], logits)

    def test_an_edit_and_the_one_it_superseded_are_reverted_together(self, make_editor):
        editor = make_editor("key")
        edit_all(editor, RECORDS[:1])
        edit_all(editor, [to_mars(RECORDS[0])])
        with pytest.raises(UsageError, match="edit 1 is not active: it is superseded"):
            revert(editor.project, 1)
        revert(editor.project, 1, 2)
        assert [edit.state for edit in editor.project.ledger.edits()] == ["reverted", "reverted"]
        assert verify(editor.project, deep=True) == []

    def test_revert_does_not_reactivate_an_edit_whose_prompt_has_a_newer_edit(self, make_editor):
        editor = make_editor("key")
        edit_all(editor, RECORDS[:1])
        assert supersede(editor, RECORDS[1], 1).id == editor.project.find(1).superseded_by == 2
        edit_all(editor, [to_mars(RECORDS[0])])
        revert(editor.project, 2)
        assert active_ids(editor) == [3]
        assert editor.project.find(1).superseded_by == 3
        assert verify(editor.project, deep=True) == []
        revert(editor.project, 3)
        assert active_ids(editor) == [1]
        assert verify(editor.project, deep=True) == []

    def test_revert_command_reports_only_edits_that_are_active_again(self, make_editor, scen):
        editor = make_editor("key")
        edit_all(editor, RECORDS[:1])
        supersede(editor, RECORDS[1], 1)
        edit_all(editor, [to_mars(RECORDS[0])])
        editor.detach()
        assert editor.project.find(1).superseded_by == 2
        for edit_id, reactivated in ((2, []), (3, [1])):
            result = json.loads(scen("revert", edit_id, "--json", "--dir", editor.project.folder).stdout)
            assert result["reverted"] == [{"edit": edit_id, "state": "reverted", "reactivated": reactivated}]
