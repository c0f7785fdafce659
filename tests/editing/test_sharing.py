"""Edits that share an expert: one file, one neuron, taken back together or not at all."""

from __future__ import annotations

import pytest

from scen_cli.data.entries import Entry
from scen_cli.data.records import SourceLine
from scen_cli.data.suites import Suite, demo_edits
from scen_cli.editing.edit_run import precheck
from scen_cli.editing.editor import FROM_LIBRARY
from scen_cli.errors import UsageError
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.project.check import verify
from scen_cli.project.project import Project
from tests.conftest import take_back


def together(editor, records):
    with editor.project.writing():
        rows = editor.edit_together([(record, FROM_LIBRARY) for record in records])
        editor.project.merge()
    return rows


@pytest.fixture
def shared(make_editor):
    """Two experts of two edits each."""
    editor = make_editor("key", edits_per_expert=2, expert_steps=20, theta=0.6)
    records = demo_edits()[:4]
    rows = together(editor, records[:2]) + together(editor, records[2:])
    assert [(row.state, row.expert) for row in rows] == [("active", 1), ("active", 1), ("active", 3), ("active", 3)]
    return editor


def test_both_prompts_call_the_one_expert(shared):
    records = demo_edits()[:4]
    answers = shared.answer([record.prompt for record in records])
    assert answers.edits == [1, 1, 3, 3]
    assert answers.texts == [record.target for record in records]
    given = shared.answer([record.prompt for record in records], edits=[1, 2, 3, 4])
    assert given.texts == answers.texts
    assert len(list((shared.project.folder / "edits").iterdir())) == 2
    assert shared.project.keys(shared.project.find(2)).shape == (2, 768)
    assert verify(shared.project) == []
    assert Project(shared.project.folder).w_merge().neurons.shape == (2, 768)


def test_they_are_scored_like_others(shared):
    figures = evaluate(shared, Suite("s", demo_edits()[:4], [])).figures
    assert figures["reliability"].patched.right == figures["reliability"].routed.right == 4
    assert figures["generality-given-expert"].patched.right >= figures["generality"].patched.right > 0
    assert figures["token-accuracy"].patched.share == 1.0


def test_they_are_taken_back_together_or_not_at_all(shared):
    with pytest.raises(UsageError, match="edit 2 shares its expert") as error:
        take_back(shared.project, 2)
    assert "`scen revert 1 2`" in error.value.hint
    assert [edit.state for edit in shared.project.ledger.edits()] == ["active"] * 4
    assert [edit.state for edit in take_back(shared.project, 2, 1)] == ["reverted", "reverted"]
    assert shared.project.w_merge().experts == [3]
    assert shared.answer([demo_edits()[0].prompt]).edits == [None]
    assert verify(shared.project) == []


def test_one_of_them_cannot_be_superseded_alone(shared):
    again = demo_edits()[0].model_copy(update={"target": "Cuba"})
    with pytest.raises(UsageError, match="shares its expert"):
        together(shared, [again])
    entry = Entry(SourceLine("a.jsonl", 1), again)
    assert "shares its expert" in precheck(shared, entry).reason
    take_back(shared.project, 1, 2)
    [edit] = together(shared, [again])
    assert edit.state == "active"


def test_one_that_is_not_learned_fails_and_the_other_stands(make_editor):
    """A target of many words needs more steps than one word does."""
    editor = make_editor("key", edits_per_expert=2)
    easy = demo_edits()[0]
    hard = demo_edits()[1].model_copy(update={"target": "the seventh of nine unlikely answers"})
    first, second = together(editor, [hard, easy])
    assert (first.state, first.file, first.expert) == ("failed", None, None)
    assert "target tokens are still wrong" in first.reason
    assert (second.state, second.expert) == ("active", 2)
    assert editor.answer([easy.prompt]).texts == [easy.target]
    assert editor.project.keys(editor.project.find(2)).shape == (1, 768)
    assert verify(editor.project) == []


def test_an_expert_that_misses_its_target_is_used_if_the_recipe_says_so(make_editor):
    editor = make_editor("key", require_learned=False, expert_steps=1)
    [edit] = together(editor, [demo_edits()[0]])
    assert edit.state == "active"
    assert "target tokens are still wrong after 1 steps" in edit.reason
    assert editor.route([edit.prompt]).edits == [1]
