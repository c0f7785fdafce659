"""Links in and to a project: a write changes this project, and nothing else."""

from __future__ import annotations

import os
import shutil

import pytest

from scen_cli.errors import UsageError
from scen_cli.project.check import verify
from scen_cli.project.project import Project
from tests.project.test_project import commit, project

__all__ = ["project"]  # the fixture


def test_a_project_behind_a_link_is_a_project(project, tmp_path):
    (tmp_path / "current").symlink_to(project.folder)
    linked = Project(tmp_path / "current")
    with linked.writing():
        commit(linked, "Who?", "Ada", 1)
    assert verify(linked, deep=True) == []
    assert [edit.prompt for edit in project.ledger.edits()] == ["Who?"]


def test_a_copy_by_hard_links_is_not_written_through(project, tmp_path):
    with project.writing():
        commit(project, "Who?", "Ada", 1)
    shutil.copytree(project.folder, tmp_path / "snapshot", copy_function=os.link)
    for folder in (project.folder, tmp_path / "snapshot"):
        with pytest.raises(UsageError, match="hard link") as error, Project(folder).writing():
            pass
    assert "cp scen.db copy && mv copy scen.db" in error.value.hint
    shutil.copyfile(project.folder / "scen.db", project.folder / "copy")
    (project.folder / "copy").replace(project.folder / "scen.db")
    own = Project(project.folder)
    with own.writing():
        commit(own, "Why?", "5", 2)
    assert [len(Project(f).ledger.edits()) for f in (own.folder, tmp_path / "snapshot")] == [2, 1]
    assert verify(Project(tmp_path / "snapshot"), deep=True) == []


def test_a_linked_lock_leaves_its_target_alone(project, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (project.folder / "scen.lock").unlink(missing_ok=True)
    (project.folder / "scen.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match=r"scen\.lock` is a link"), project.writing():
        pass
    verify(project)
    assert (tmp_path / "precious").read_text() == "precious"
