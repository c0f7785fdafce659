"""A project of each format (tests/data/golden) opens, answers as it did when it was made, and can be edited."""

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
from tests.conftest import revert

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
ANSWERS = EXPECTED["answers"]


@pytest.fixture
def golden(tmp_path) -> Path:
    """A copy of the project of format 1."""
    return shutil.copytree(GOLDEN / "v1", tmp_path / "golden")


def edits_of(project: Project) -> list[dict]:
    edits = project.ledger.edits()
    return [{"id": e.id, "state": e.state, "prompt": e.prompt, "target": e.target} for e in edits]


def columns(project: Project) -> dict[str, set]:
    """Name, type and constraints of every column, by table."""
    return {
        table.name: {(c.name, c.type, c.notnull, c.is_pk) for c in table.columns} for table in project.ledger.db.tables
    }


def indexes(project: Project) -> set:
    return {(table.name, *index.columns) for table in project.ledger.db.tables for index in table.indexes}


def test_golden_project_has_its_edits_and_answers(golden, demo_base):
    project = Project(golden)
    assert edits_of(project) == EXPECTED["edits"]
    assert project.ledger.theta() == EXPECTED["theta"]
    assert verify(project, deep=True) == []
    patched = PatchedModel(project, base=demo_base)
    assert patched.answer(list(ANSWERS)).texts == list(ANSWERS.values())
    patched.detach()
    [evaluation] = project.ledger.evaluations()
    reliability = evaluation["metrics"]["figures"]["reliability"]
    assert (reliability["patched"]["right"], reliability["patched"]["total"]) == (1, 1)


def test_opening_a_current_project_writes_nothing(golden):
    Project(golden).close()
    before = {path: path.read_bytes() for path in golden.rglob("*") if path.is_file()}
    project = Project(golden)
    assert edits_of(project) == EXPECTED["edits"]
    project.close()
    assert {path: path.read_bytes() for path in golden.rglob("*") if path.is_file()} == before


def test_golden_ledger_has_the_tables_of_a_new_one(golden, tmp_path, demo_base):
    new = new_project(tmp_path / "new", "demo", recipe="key", base=demo_base)
    old = Project(golden)
    assert columns(old) == columns(new)
    assert indexes(old) == indexes(new)


def test_golden_project_takes_a_revert_and_a_new_edit(golden, demo_base):
    project = Project(golden)
    first, third = project.find(1), demo_edits()[2]
    editor = Editor(project, base=demo_base)
    with project.writing():
        assert [edit.state for edit in revert(project, 1)] == ["reverted"]
        new = editor.edit(third)
        project.merge()
    assert (new.id, new.state) == (3, "active")
    answers = editor.answer([third.prompt, first.prompt, *list(ANSWERS)[2:]])
    base = editor.answer([first.prompt], patched=False).texts
    editor.detach()
    assert answers.texts == [third.target, *base, *list(ANSWERS.values())[2:]]
    assert answers.edits == [3, None, None, None]
    assert verify(project) == []
