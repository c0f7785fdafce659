"""Projects made before a table had all its columns open, and say what they said."""

from __future__ import annotations

import sqlite3

from scen_cli.project.check import verify
from scen_cli.project.project import Project
from tests.project.test_project import SETTINGS, commit


def test_a_ledger_without_experts_and_samples_is_brought_up_to_date(tmp_path):
    project = Project.create(tmp_path / "p", SETTINGS, theta=0.65)
    commit(project, "Who?", number=1)
    commit(project, "Where?", number=2)
    project.revert(1)
    project.close()
    with sqlite3.connect(tmp_path / "p" / "scen.db") as db:  # as the first version wrote it
        db.execute("alter table edits drop column expert")
        db.execute("alter table evaluations drop column samples")
        db.execute("delete from _sqlite_migrations where name = 'share_experts_and_keep_samples'")
    db.close()
    again = Project(tmp_path / "p")
    assert [edit.expert for edit in again.ledger.edits()] == [1, 2]
    assert again.merged().experts == [2]
    assert verify(again) == []
    again.close()
    assert [edit.expert for edit in Project(tmp_path / "p").ledger.edits()] == [1, 2]  # it was written, not only read
