"""Edits that are made again from their files, without the ledger."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from scen_cli.data.suites import demo_edits
from scen_cli.project.check import repair, verify
from scen_cli.project.project import Project
from tests.conftest import edit_all

FAST = {"prompt_augmentations": 0, "expert_steps": 6, "extra_steps": 30}
RECORDS = demo_edits()[:5]


def state_of(project):
    edits = [(edit.prompt, edit.target, edit.subject, edit.file, edit.bias) for edit in project.ledger.edits()]
    return edits, project.ledger.theta(), project.w_merge().neurons.tobytes()


@pytest.mark.parametrize("expert", ["low-rank", "full"])
def test_a_lost_ledger_is_made_again_from_the_files_bit_for_bit(make_editor, scen, expert):
    editor, new = make_editor("closed-form", **FAST, expert=expert), make_editor("closed-form", **FAST, expert=expert)
    edit_all(editor, RECORDS)
    before, left = state_of(editor.project), editor.project.folder
    editor.project.close()
    (left / "scen.db").unlink()
    result = json.loads(scen("rebuild", left, "--dir", new.project.folder, "--json").stdout)
    assert [outcome["outcome"] for outcome in result["edits"]] == ["edited"] * 5
    assert state_of(new.project) == before
    assert verify(new.project, deep=True) == []
    assert new.answer([record.prompt for record in RECORDS]).texts == [record.target for record in RECORDS]
    again = scen("rebuild", left / "edits", "--dir", new.project.folder)
    assert "0 edited, 5 skipped" in again.stdout


def test_files_that_cannot_be_used_are_named_and_the_others_are_edits(make_editor, scen):
    editor, new, other = make_editor("key", **FAST), make_editor("key", **FAST), make_editor("key", **FAST)
    edit_all(editor, RECORDS[:3])
    edit_all(other, RECORDS[3:4])
    folder = editor.project.folder / "edits"
    first, second, _third = sorted(folder.iterdir())
    first.write_bytes(first.read_bytes()[:-1] + b"\x00\x01")
    second.unlink()
    other_layer = make_editor("key", **FAST, target_module="up")
    edit_all(other_layer, RECORDS[:1])
    shutil.copy(next((other_layer.project.folder / "edits").iterdir()), folder)
    result = scen("rebuild", folder, "--quiet", "--dir", new.project.folder, code=3)
    assert "000001" in result.stderr
    assert "the file is not what was written" in result.stderr
    assert "its expert was trained on another base, layer or target module" in result.stderr
    assert [edit.prompt for edit in new.project.ledger.edits()] == [RECORDS[2].prompt]


def test_a_folder_without_edit_files_is_refused(scen, logged_at, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "there are no edit files" in scen("rebuild", tmp_path / "empty", *logged_at, code=2).stderr


def test_repair_keeps_a_file_that_no_row_names_and_rebuild_makes_an_edit_of_it(make_editor, scen):
    editor = make_editor("key", **FAST)
    edit_all(editor, RECORDS[:2])
    project = editor.project
    older = project.folder.parent / "older.db"
    shutil.copy(project.folder / "scen.db", older)
    edit_all(editor, RECORDS[2:3])
    name = project.find(3).file
    project.close()
    shutil.copy(older, project.folder / "scen.db")
    (project.folder / "scen.db.sha256").unlink()
    opened = Project(project.folder)
    with opened.writing():
        assert f"moved `{name}`" in " ".join(repair(opened))
    opened.close()
    scen("rebuild", project.folder / "lost", "--dir", project.folder)
    rebuilt = Project(project.folder)
    assert [edit.prompt for edit in rebuilt.ledger.edits()] == [record.prompt for record in RECORDS[:3]]
    assert rebuilt.find(3).file == name
    assert np.isfinite(rebuilt.w_merge().neurons).all()
