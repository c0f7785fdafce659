"""A project of an earlier format is migrated when it is opened: once, completely, and recorded in the log."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from scen_cli.errors import ScenError, UsageError
from scen_cli.project.check import verify
from scen_cli.project.project import Project
from tests.conftest import revert
from tests.faults.injector import in_child
from tests.project.next_format import MIGRATION, second_migration
from tests.project.test_golden import EXPECTED, GOLDEN, edits_of
from tests.project.test_project import commit


@pytest.fixture
def golden(tmp_path) -> Path:
    """A copy of the project of format 1."""
    return shutil.copytree(GOLDEN / "v1", tmp_path / "golden")


@pytest.fixture
def migration():
    with second_migration():
        yield


def kinds(project: Project) -> list[str]:
    return [event["kind"] for event in project.ledger.events()]


def test_opening_migrates_once_and_records_it(golden, migration):
    project = Project(golden)
    assert edits_of(project) == EXPECTED["edits"]
    assert project.ledger.theta() == EXPECTED["theta"]
    event = project.ledger.events()[-1]
    assert (event["kind"], event["detail"]["to"]) == ("migrate", ["name_subjects", MIGRATION])
    assert "comment" in project.ledger.db["edits"].columns_dict
    assert verify(project, deep=True) == []
    project.close()
    before = (golden / "scen.db").read_bytes()
    project = Project(golden)
    assert kinds(project).count("migrate") == 1
    assert verify(project, deep=True) == []
    project.close()
    assert (golden / "scen.db").read_bytes() == before


def test_subjects_are_found_by_name_where_they_were_found_by_tokens(golden):
    with sqlite3.connect(golden / "scen.db") as db:
        db.execute("update edits set subject = 'Ada', subject_forms = iif(id = 1, '[[7, 8], [9]]', '[]')")
    db.close()
    project = Project(golden)
    assert [edit.subject_names for edit in project.ledger.edits()] == [("Ada",), ()]
    assert "subject_forms" not in project.ledger.db["edits"].columns_dict


def test_a_migrated_project_takes_edits_and_reverts(golden, migration):
    project = Project(golden)
    width = project.settings["ffn_width"]
    with project.writing():
        edit, _tensors = commit(project, "Who?", "Ada", 3, width)
        revert(project, 1)
    assert [row.state for row in project.ledger.edits()] == ["reverted", "reverted", "active"]
    assert project.w_merge().experts == [edit.id]
    assert verify(project, deep=True) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("update edits set target = 'Mars' where id = 1", "edit 1 is not as it was committed: target"),
        ("update edits set state = 'active' where id = 2", "edit 2 is not as it was committed: state"),
        ("update thresholds set theta = 0.01", "theta is 0.01; it was set to 0.8"),
        ("delete from evaluations", "evaluation 1 is gone"),
        ("update evaluations set id = 2", "evaluation 2 is in no event"),
        ("delete from edits where id = 2", "edit 2 is gone"),
        ("update edits set id = 3 where id = 2", "edit 3 is in no event"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_verify_finds_a_change_before_and_after_the_migration(golden, migration, change, problem, when):
    if when == "after":
        Project(golden).close()
    with sqlite3.connect(golden / "scen.db") as db:
        db.execute(change)
    db.close()
    assert problem in [found.what for found in verify(Project(golden))]


def test_one_of_several_processes_migrates_and_the_others_wait(golden, migration):
    children = []
    for _ in range(6):
        if (child := os.fork()) == 0:
            os._exit(in_child(lambda: Project(golden).close()) % 256)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * 6
    project = Project(golden)
    assert kinds(project).count("migrate") == 1
    assert verify(project) == []


def test_a_failed_migration_changes_nothing(golden, migration, monkeypatch):
    before = (golden / "scen.db").read_bytes()

    def fail(*_arguments):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("scen_cli.project.ledger.Ledger._append_event", fail)
        with pytest.raises(sqlite3.OperationalError):
            Project(golden)
    assert (golden / "scen.db").read_bytes() == before
    project = Project(golden)
    assert kinds(project)[-1] == "migrate"
    assert verify(project, deep=True) == []


def test_a_read_only_ledger_is_not_migrated_and_the_message_says_so(golden, migration, monkeypatch):
    """Root may write to a read-only folder: the ledger is opened read-only instead."""
    from scen_cli.project import disk

    def connect_read_only(path, busy_seconds):
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, factory=disk.Connection)
        connection.path = path
        return connection

    before = (golden / "scen.db").read_bytes()
    monkeypatch.setattr("scen_cli.project.ledger.connect", connect_read_only)
    with pytest.raises(ScenError, match="must be migrated .* its folder is read-only"):
        Project(golden)
    assert (golden / "scen.db").read_bytes() == before


def test_a_project_of_a_newer_scen_is_refused_and_not_changed(golden):
    with second_migration():
        Project(golden).close()
    before = {path: path.read_bytes() for path in golden.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=f"newer scen .*`{MIGRATION}`"):
        Project(golden)
    assert {path: path.read_bytes() for path in golden.rglob("*") if path.is_file()} == before
