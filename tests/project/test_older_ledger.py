"""An older copy of the ledger in the place of the newer one: nothing is written until somebody says what to do."""

from __future__ import annotations

import shutil

import pytest

from scen_cli.errors import DamageFound
from scen_cli.project.archive import backup, restore
from scen_cli.project.check import accept_ledger, find_unused_files, verify
from scen_cli.project.project import Project
from tests.conftest import revert
from tests.project.test_project import commit, project

__all__ = ["project"]  # the fixture


@pytest.fixture
def older(project) -> Project:
    """A project with the ledger of an edit ago."""
    with project.writing():
        commit(project, "Who?", "Ada", 1)
    old = (project.folder / "scen.db").read_bytes()
    with project.writing():
        commit(project, "Why?", "5", 2)
    project.close()
    shutil.copyfile(project.folder / "scen.db", project.folder / "newer.db")
    (project.folder / "scen.db").write_bytes(old)
    return Project(project.folder)


def test_no_command_writes_and_the_newer_ledger_can_be_put_back(older):
    for change in (lambda: commit(older, "When?", "6", 3), lambda: revert(older, 1), older.merge):
        with pytest.raises(DamageFound, match="Nothing is changed") as raised, older.writing():
            change()
        assert "--accept-ledger" in raised.value.hint
    older.close()
    shutil.copyfile(older.folder / "newer.db", older.folder / "scen.db")
    back = Project(older.folder)
    assert (verify(back, deep=True), len(back.ledger.edits())) == ([], 2)


def test_an_accepted_ledger_takes_changes_and_the_files_of_newer_edits_are_kept(older):
    newer = {path.name for path in (older.folder / "edits").iterdir()} - {str(older.find(1).file).split("/")[1]}
    with older.writing(even_if_older=True):
        done = accept_ledger(older)
    assert {path.name for path in (older.folder / "lost").iterdir()} == newer
    assert len(done) == len(newer) + 1
    with older.writing():
        commit(older, "When?", "6", 3)
        assert find_unused_files(older) == []
    assert verify(older, deep=True) == []
    assert {path.name for path in (older.folder / "lost").iterdir()} == newer


def test_a_ledger_with_another_fault_is_not_accepted(older):
    older.ledger.db["edits"].update(1, {"target": "Mars"})
    with pytest.raises(DamageFound, match="target"), older.writing(even_if_older=True):
        accept_ledger(older)
    assert not (older.folder / "lost").exists()


def test_the_newest_ledger_needs_no_acceptance(project):
    with project.writing():
        commit(project, "Who?", "Ada", 1)
        assert accept_ledger(project) == []


def test_a_restored_backup_of_an_earlier_state_takes_changes(project, tmp_path):
    with project.writing():
        commit(project, "Who?", "Ada", 1)
    backup(project, tmp_path / "b.zip")
    with project.writing():
        commit(project, "Why?", "5", 2)
    restored = restore(tmp_path / "b.zip", tmp_path / "restored")
    with restored.writing():
        commit(restored, "When?", "6", 3)
    assert verify(restored, deep=True) == []
