"""Folders that a user may not write to, interrupted changes, and processes that keep the ledger busy."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from scen_cli.errors import ScenError, UsageError
from scen_cli.project.check import find_unused_files, verify
from scen_cli.project.project import Project
from tests.project.test_project import SETTINGS, commit

NOBODY = 65534
INTERRUPTED = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("pragma cache_size = 1")  # changed pages reach the file before the commit
connection.execute("begin immediate")
connection.execute("update edits set target = hex(randomblob(20000))")
os._exit(0)
"""


@pytest.fixture
def project():
    """In a folder that every user may enter and read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    made = Project.create(folder / "p", {**SETTINGS, "recipe": {"name": "key"}}, theta=0.65)
    commit(made, "Who?", "Ada", 1)
    yield made
    made.close()
    shutil.rmtree(folder)


@contextmanager
def with_rights(folder, **rights):
    """A user who may read this folder, but not write to it; `rights` are other modes of some of its files."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(rights.get(path.name.replace(".", "_"), 0o555 if path.is_dir() else 0o444))
    is_root = os.geteuid() == 0
    if is_root:  # rights do not bind root
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_who_may_not_write_is_told_before_anything_is_trained(project):
    """`scen edit` trains inside `writing`."""
    with with_rights(project.folder):
        with pytest.raises(UsageError, match="you may not write to .*: nothing was changed"), project.writing():
            pytest.fail("reached the training")
        assert len(Project(project.folder).ledger.edits()) == 1


def test_who_may_not_write_to_the_ledger_alone_is_told_too(project):
    rights = {"p": 0o777, "edits": 0o777, "scen_lock": 0o666}
    with (
        with_rights(project.folder, **rights),
        pytest.raises(UsageError, match="you may not write to .*scen.db`"),
        project.writing(),
    ):
        pytest.fail("reached the training")


def test_a_lock_that_one_may_not_open_is_no_damage(project):
    with project.writing():
        pass
    with with_rights(project.folder, scen_lock=0o600):
        assert verify(Project(project.folder)) == []


def test_a_reader_without_the_right_to_write_is_told_of_an_interrupted_change(project):
    before = project.ledger.edits()
    project.close()
    subprocess.run([sys.executable, "-c", INTERRUPTED, project.folder / "scen.db"], check=True)
    assert (project.folder / "scen.db-journal").stat().st_size > 0
    with with_rights(project.folder), pytest.raises(ScenError, match="a change to this project was interrupted"):
        Project(project.folder)
    assert Project(project.folder).ledger.edits() == before  # its owner opens it: SQLite undoes the change
    with with_rights(project.folder):
        assert Project(project.folder).ledger.edits() == before


def test_a_commit_waits_for_a_reader_and_leaves_no_file_if_it_reads_for_too_long(project, monkeypatch):
    monkeypatch.setattr("scen_cli.project.ledger.BUSY_SECONDS", 0.2)
    writer = Project(project.folder, wait=0.0)
    reader = sqlite3.connect(project.folder / "scen.db")
    reader.execute("begin")
    reader.execute("select * from edits").fetchall()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        commit(writer, "Where?", "Riga", 2)
    assert find_unused_files(writer) == []
    assert len(writer.ledger.edits()) == 1
    reader.rollback()
    commit(writer, "Where?", "Riga", 2)
    assert len(writer.ledger.edits()) == 2
    assert writer.ledger.db.execute("pragma busy_timeout").fetchone()[0] == 200
    patient = Project(project.folder, wait=100.0)
    assert patient.ledger.db.execute("pragma busy_timeout").fetchone()[0] == 100_000


def test_a_linked_ledger_is_refused_before_the_lock(project):
    os.link(project.folder / "scen.db", project.folder.parent / "linked.db")
    with pytest.raises(UsageError, match="by a hard link"), project.writing():
        pass
