"""Edits that share an expert: one file, one neuron, reverted together or not at all."""

from __future__ import annotations

import pytest

from scen_cli.data.entries import Entry
from scen_cli.data.records import SourceLine
from scen_cli.data.suites import Suite, demo_edits
from scen_cli.editing.edit_plan import precheck
from scen_cli.editing.editor import FROM_LIBRARY
from scen_cli.errors import UsageError
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.project.check import verify
from scen_cli.project.project import Project
from tests.conftest import revert

RECORDS = demo_edits()[:4]


def edit_group(editor, records):
    with editor.project.writing():
        edits = editor.edit_group([(record, FROM_LIBRARY) for record in records])
        editor.project.merge()
    return edits


@pytest.fixture
def shared(make_editor):
    """Two experts of two edits each."""
    editor = make_editor("key", edits_per_expert=2, expert_steps=20, theta=0.6)
    edits = edit_group(editor, RECORDS[:2]) + edit_group(editor, RECORDS[2:])
    assert [(edit.state, edit.expert) for edit in edits] == [("active", 1), ("active", 1), ("active", 3), ("active", 3)]
    return editor


def test_both_prompts_route_to_the_shared_expert(shared):
    prompts = [record.prompt for record in RECORDS]
    answers = shared.answer(prompts)
    assert answers.edits == [1, 1, 3, 3]
    assert answers.texts == [record.target for record in RECORDS]
    assert shared.answer(prompts, edits=[1, 2, 3, 4]).texts == answers.texts
    assert len(list((shared.project.folder / "edits").iterdir())) == 2
    assert shared.project.files.keys(shared.project.find(2)).shape == (2, 768)
    assert verify(shared.project) == []
    assert Project(shared.project.folder).w_merge().neurons.shape == (2, 768)


def test_evaluate_scores_edits_that_share_an_expert(shared):
    figures = evaluate(shared, Suite("s", RECORDS, [])).figures
    assert figures["reliability"].patched.right == figures["reliability"].routed.right == 4
    assert figures["generality-given-expert"].patched.right >= figures["generality"].patched.right > 0
    assert figures["token-accuracy"].patched.share == 1.0


def test_revert_needs_all_edits_of_the_expert(shared):
    with pytest.raises(UsageError, match="edit 2 shares its expert") as error:
        revert(shared.project, 2)
    assert "`scen revert 1 2`" in error.value.hint
    assert [edit.state for edit in shared.project.ledger.edits()] == ["active"] * 4
    assert [edit.state for edit in revert(shared.project, 2, 1)] == ["reverted", "reverted"]
    assert shared.project.w_merge().experts == [3]
    assert shared.answer([RECORDS[0].prompt]).edits == [None]
    assert verify(shared.project) == []


def test_one_edit_of_an_expert_cannot_be_superseded_alone(shared):
    again = RECORDS[0].model_copy(update={"target": "Cuba"})
    with pytest.raises(UsageError, match="shares its expert"):
        edit_group(shared, [again])
    entry = Entry(SourceLine("a.jsonl", 1), again)
    assert "shares its expert" in precheck(shared, shared.project, entry).reason
    revert(shared.project, 1, 2)
    [edit] = edit_group(shared, [again])
    assert edit.state == "active"


def test_a_target_that_is_not_learned_fails_alone(make_editor):
    """A target of many words needs more steps than a target of one word."""
    editor = make_editor("key", edits_per_expert=2)
    easy, hard = RECORDS[0], RECORDS[1].model_copy(update={"target": "the seventh of nine unlikely answers"})
    first, second = edit_group(editor, [hard, easy])
    assert (first.state, first.file, first.expert) == ("failed", None, None)
    assert "target tokens are still wrong" in first.reason
    assert (second.state, second.expert) == ("active", 2)
    assert editor.answer([easy.prompt]).texts == [easy.target]
    assert editor.project.files.keys(editor.project.find(2)).shape == (1, 768)
    assert verify(editor.project) == []


def test_require_learned_false_activates_an_expert_that_misses_its_target(make_editor):
    editor = make_editor("key", require_learned=False, expert_steps=1)
    [edit] = edit_group(editor, [RECORDS[0]])
    assert edit.state == "active"
    assert "target tokens are still wrong after 1 steps" in edit.reason
    assert editor.route([edit.prompt]).edits == [1]
