"""Projects that older versions made (tests/data/golden) open, answer as they did then, and can be worked on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.project.check import verify
from scen_cli.project.project import Project

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(params=EXPECTED)
def golden(request, tmp_path):
    """A copy of one old project, and what the program that made it said of it."""
    shutil.copytree(GOLDEN / request.param, tmp_path / "p")
    return tmp_path / "p", EXPECTED[request.param]


def told(project: Project) -> list[dict]:
    edits = project.ledger.edits()
    return [{"id": e.id, "state": e.state, "prompt": e.prompt, "target": e.target} for e in edits]


def schema(project: Project) -> dict[str, set]:
    """Of each table its columns, their types and what else a column's line says, in no order."""
    return {
        table.name: {(c.name, c.type, c.notnull, c.is_pk) for c in table.columns} for table in project.ledger.db.tables
    }


def indexes(project: Project) -> set:
    return {(table.name, *index.columns) for table in project.ledger.db.tables for index in table.indexes}


def test_it_says_what_it_said(golden, demo_base):
    folder, expected = golden
    project = Project(folder)
    assert told(project) == expected["edits"]
    assert project.ledger.theta() == expected["theta"]
    assert verify(project) == []
    patched = PatchedModel(project, base=demo_base)
    assert patched.answer(list(expected["answers"])).texts == list(expected["answers"].values())
    patched.detach()
    [evaluation] = project.ledger.evaluations()
    reliability = evaluation["metrics"]["figures"]["reliability"]
    assert (reliability["patched"]["right"], reliability["patched"]["total"]) == (1, 1)


def test_opening_it_twice(golden):
    folder, expected = golden
    Project(folder).close()
    ledger = (folder / "scen.db").read_bytes()
    again = Project(folder)
    assert told(again) == expected["edits"]
    again.close()
    assert (folder / "scen.db").read_bytes() == ledger  # the first time brought it up to date


def test_its_ledger_is_then_like_a_new_one(golden, tmp_path, demo_base):
    new = new_project(tmp_path / "new", "demo", recipe="key", base=demo_base)
    old = Project(golden[0])
    assert schema(old) == schema(new)
    assert indexes(old) == indexes(new)


def test_an_old_edit_is_reverted_and_a_new_one_made(golden, demo_base):
    folder, expected = golden
    project = Project(folder)
    first, third = project.find(1), demo_edits()[2]
    editor = Editor(project, base=demo_base)
    with project.writing():
        assert [edit.state for edit in project.revert(1)] == ["reverted"]
        made = editor.edit(third)
        project.merge()
    assert (made.id, made.state) == (3, "active")
    answers = editor.answer([third.prompt, first.prompt, *list(expected["answers"])[2:]])
    base = editor.answer([first.prompt], patched=False).texts
    editor.detach()
    assert answers.texts == [third.target, *base, *list(expected["answers"].values())[2:]]
    assert answers.edits == [3, None, None, None]
    assert verify(project) == []
