"""Two to eight processes on one project: every edit once, no reader disturbed, no lock that needs hands."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter

import pytest

from scen_cli.cli.edit import train_all
from scen_cli.cli.output import Output
from scen_cli.data.suites import Suite, demo_edits
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.editing.revert_edits import revert_edits
from scen_cli.errors import ProjectLocked, UsageError
from scen_cli.evaluation.evaluate_project import evaluate, keep
from scen_cli.project.check import verify
from scen_cli.project.disk import refuse_foreign_journal
from scen_cli.project.project import Project
from tests.conftest import edit_all, writing
from tests.faults.injector import in_child

SMALL = {"expert": "low-rank", "rank": 2, "expert_steps": 2, "require_learned": 0}


def forked(*acts):
    """Run all at once, each in a process of its own; returns their exit codes."""
    children = []
    for act in acts:
        child = os.fork()
        if child == 0:
            os._exit(in_child(act) % 256)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.fixture
def project(tmp_path, demo_base):
    return new_project(tmp_path / "p", "demo", recipe="key", base=demo_base, changes=SMALL)


def editing(folder, base, records):
    """What `scen edit --wait 600` does."""

    def run():
        editor = Editor(Project(folder, wait=600), base=base)
        train_all(editor, Suite("demo", records, []), Output(quiet=True))

    return run


def test_eight_processes_of_25_edits_each(project, demo_base):
    records = demo_edits()[:200]
    parts = [records[start : start + 25] for start in range(0, 200, 25)]
    assert forked(*(editing(project.folder, demo_base, part) for part in parts)) == [0] * 8
    edits = Project(project.folder).ledger.edits("active")
    assert Counter(edit.prompt for edit in edits) == Counter(record.prompt for record in records)
    assert [edit.id for edit in edits] == list(range(1, 201))
    assert len({edit.file for edit in edits}) == 200
    assert verify(Project(project.folder), deep=True) == []
    assert Project(project.folder).w_merge().experts == list(range(1, 201))


def test_who_edits_evaluates_reverts_verifies_and_asks_at_once(project, demo_base):
    """Nobody fails, no reader sees half a change, and what is left is whole."""
    records = demo_edits()[:30]
    edit_all(Editor(project, base=demo_base), records[:6])
    folder = project.folder

    def reverting():
        mine = Project(folder, wait=600)
        for edit_id in (1, 2, 3):
            with mine.writing():
                revert_edits(mine, edit_id)

    def evaluating():
        editor = Editor(Project(folder, wait=600), base=demo_base)
        for _ in range(2):
            with writing(editor.project):
                keep(editor.project, evaluate(editor, Suite("demo", records[:4], []), quick=True))

    def verifying():
        for _ in range(15):
            mine = Project(folder)
            damage = [problem for problem in verify(mine) if problem.kind == "damage"]
            assert not damage, damage
            mine.close()

    def asking():
        editor = Editor(Project(folder), base=demo_base)
        for _ in range(15):
            said = editor.answer([record.prompt for record in records[3:6]])
            assert said.edits == [4, 5, 6]

    acts = (
        editing(folder, demo_base, records[6:18]),
        editing(folder, demo_base, records[18:]),
        reverting,
        evaluating,
        verifying,
        verifying,
        asking,
    )
    assert forked(*acts) == [0] * len(acts)
    states = Counter(edit.state for edit in Project(folder).ledger.edits())
    assert states == {"active": 27, "reverted": 3}
    assert len(Project(folder).ledger.evaluations()) == 2
    assert verify(Project(folder), deep=True) == []


def test_a_journal_that_goes_as_it_is_looked_at_is_none(tmp_path):
    """Every commit of another process makes one and removes it."""
    journal = tmp_path / "scen.db-journal"
    child = os.fork()
    if child == 0:
        while True:
            journal.write_bytes(b"x" * 64)
            journal.unlink()
    try:
        seen = 0
        for _ in range(4_000):
            seen += journal.exists()
            refuse_foreign_journal(tmp_path / "scen.db")
        assert seen
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_left_by_a_killed_process_needs_no_hands(project):
    child = os.fork()
    if child == 0:
        with project.writing():
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (project.folder / "scen.lock.holder").read_text() == f"process {child}\n"
    started = time.monotonic()
    with Project(project.folder).writing():
        pass
    assert time.monotonic() - started < 5


def test_a_second_writer_waits_as_long_as_it_is_told(project, tmp_path):
    (tmp_path / "held").unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        with project.writing():
            (tmp_path / "held").touch()
            time.sleep(3)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(ProjectLocked, match=f"process {child} is writing"), Project(project.folder).writing():
        pass
    with Project(project.folder, wait=60).writing():
        pass
    os.waitpid(child, 0)


def test_the_command_says_who_holds_the_project_and_what_to_do(project, scen, tmp_path):
    child = os.fork()
    if child == 0:
        with project.writing():
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    try:
        for command in (["gc"], ["merge"], ["revert", "1"], ["verify", "--repair"]):
            told = scen(*command, "--dir", project.folder, code=11).stderr
            assert f"process {child} is writing to this project" in told
            assert "--wait SECONDS" in told
        assert json.loads(scen("status", "--json", "--dir", project.folder).stdout)["edits"] == []
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_of_two_first_openings_of_an_older_project_both_succeed(tmp_path, project):
    """One brings it up to date, the other waits for it."""
    import sqlite3

    project.close()
    db = sqlite3.connect(project.folder / "scen.db")  # as the version before wrote it
    db.execute("alter table edits drop column index_sha256")
    db.execute("delete from _sqlite_migrations where name = 'add_digest_of_index'")
    db.commit()
    db.close()
    assert forked(*[lambda: Project(project.folder).close()] * 6) == [0] * 6
    kinds = [event["kind"] for event in Project(project.folder).ledger.events()]
    assert kinds == ["init", "migrate"]
    assert verify(Project(project.folder)) == []


def test_a_run_that_nothing_can_be_added_to_twice(project, demo_base):
    """Two runs of the same file at once: each of its records is edited by one of them."""
    records = demo_edits()[:12]
    act = editing(project.folder, demo_base, records)
    assert forked(act, act, act) == [0] * 3
    assert [edit.prompt for edit in Project(project.folder).ledger.edits()] == [record.prompt for record in records]
    with pytest.raises(UsageError, match="there is no edit 13"):
        Project(project.folder).find(13)
