"""Several processes use one project: each edit is made once, readers see no half change, no lock stays behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter

import pytest

from scen_cli.cli.output import Output
from scen_cli.cli.run_edits import edit_suite
from scen_cli.data.suites import Suite, demo_edits
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.editing.revert_edits import revert_edits
from scen_cli.errors import ProjectLocked, UsageError
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.evaluation.evaluation import record_evaluation
from scen_cli.project.check import verify
from scen_cli.project.disk import refuse_foreign_journal
from scen_cli.project.project import Project
from tests.conftest import edit_all
from tests.faults.injector import in_child

SMALL = {"expert": "low-rank", "rank": 2, "expert_steps": 2, "require_learned": 0}


def run_forked(*acts):
    """Run each function in its own process, all at once. Returns the exit codes."""
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
    """A function that does what `scen edit --wait 600` does."""

    def run():
        editor = Editor(Project(folder, wait=600), base=base)
        edit_suite(editor, Suite("demo", records, []), Output(quiet=True))

    return run


@pytest.mark.parametrize(("processes", "each"), [(3, 3), pytest.param(8, 25, marks=pytest.mark.slow)])
def test_processes_that_edit_at_once_lose_no_edit(project, demo_base, processes, each):
    count = processes * each
    records = demo_edits()[:count]
    batches = [records[start : start + each] for start in range(0, count, each)]
    assert run_forked(*(editing(project.folder, demo_base, batch) for batch in batches)) == [0] * processes
    edits = Project(project.folder).ledger.edits("active")
    assert Counter(edit.prompt for edit in edits) == Counter(record.prompt for record in records)
    assert [edit.id for edit in edits] == list(range(1, count + 1))
    assert len({edit.file for edit in edits}) == count
    assert verify(Project(project.folder), deep=True) == []
    assert Project(project.folder).w_merge().experts == list(range(1, count + 1))


@pytest.mark.parametrize("rounds", [2, pytest.param(15, marks=pytest.mark.slow)])
def test_edits_reverts_evaluations_checks_and_answers_at_once(project, demo_base, rounds):
    """No process fails, no reader sees half a change, and the project is valid at the end."""
    records = demo_edits()[:30]
    edit_all(Editor(project, base=demo_base), records[:6])
    folder = project.folder

    def reverting():
        opened = Project(folder, wait=600)
        for edit_id in (1, 2, 3):
            with opened.writing():
                revert_edits(opened, edit_id)

    def evaluating():
        editor = Editor(Project(folder, wait=600), base=demo_base)
        for _ in range(2):
            record_evaluation(editor.project, evaluate(editor, Suite("demo", records[:4], []), quick=True))

    def verifying():
        for _ in range(rounds):
            opened = Project(folder)
            damage = [problem for problem in verify(opened) if problem.kind == "damage"]
            assert not damage, damage
            opened.close()

    def asking():
        editor = Editor(Project(folder), base=demo_base)
        for _ in range(rounds):
            answers = editor.answer([record.prompt for record in records[3:6]])
            assert answers.edits == [4, 5, 6]

    acts = (
        editing(folder, demo_base, records[6:18]),
        editing(folder, demo_base, records[18:]),
        reverting,
        evaluating,
        verifying,
        verifying,
        asking,
    )
    assert run_forked(*acts) == [0] * len(acts)
    states = Counter(edit.state for edit in Project(folder).ledger.edits())
    assert states == {"active": 27, "reverted": 3}
    assert len(Project(folder).ledger.evaluations()) == 2
    assert verify(Project(folder), deep=True) == []


def test_a_journal_that_disappears_during_the_check_is_ignored(tmp_path):
    """Every commit of another process creates a journal and removes it."""
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


def test_a_lock_of_a_killed_process_is_free(project):
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


def test_a_second_writer_fails_or_waits(project, tmp_path):
    child = os.fork()
    if child == 0:
        with project.writing():
            (tmp_path / "held").touch()
            time.sleep(1.5)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(ProjectLocked, match=f"process {child} is writing"), Project(project.folder).writing():
        pass
    with Project(project.folder, wait=60).writing():
        pass
    os.waitpid(child, 0)


@pytest.mark.slow
def test_commands_name_the_process_that_writes(project, scen, tmp_path):
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
            error = scen(*command, "--dir", project.folder, code=11).stderr
            assert f"process {child} is writing to this project" in error
            assert "--wait SECONDS" in error
        assert json.loads(scen("status", "--json", "--dir", project.folder).stdout)["edits"] == []
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_processes_that_edit_the_same_records_make_each_edit_once(project, demo_base):
    records = demo_edits()[:12]
    act = editing(project.folder, demo_base, records)
    assert run_forked(act, act, act) == [0] * 3
    assert [edit.prompt for edit in Project(project.folder).ledger.edits()] == [record.prompt for record in records]
    with pytest.raises(UsageError, match="there is no edit 13"):
        Project(project.folder).find(13)
