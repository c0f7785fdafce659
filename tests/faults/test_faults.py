"""Every operation with a fault at every step that touches the disk: nothing is lost, nothing is half done.

The method is that of SQLite's own tests: step n fails, for n from 1 to the last step. The faults are SIGKILL, a power
cut that loses unflushed data, a full disk, an I/O error and missing rights. After each fault the project verifies, if
necessary after a repair; every earlier edit is there; and the same command, run again, ends with the same rows, files
and answers as without the fault.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.project.check import repair, verify
from scen_cli.project.project import Project
from tests.faults.injector import DONE, ERRORS, FILE_STEPS, KILL, POWER, Injector, in_child, steps_of
from tests.faults.operations import OPERATIONS, answers, snapshot
from tests.project.next_format import second_migration

pytestmark = [pytest.mark.faults, pytest.mark.slow]


GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
SMALL = {"expert": "low-rank", "rank": 2}
CHANGES = dict.fromkeys(OPERATIONS, SMALL) | {"compress": {"expert_steps": 12}}


@pytest.fixture
def begun(request, tmp_path, demo_base):
    """(name, operation, a project at its start)."""
    operation = OPERATIONS[request.param]
    folder = tmp_path / "start"
    if request.param == "migrate":
        shutil.copytree(GOLDEN / "v1", folder)
        with second_migration():
            yield request.param, operation, folder
        return
    editor = Editor(
        new_project(folder, "demo", recipe="key", base=demo_base, changes=CHANGES[request.param]), base=demo_base
    )
    operation.start(editor)
    editor.detach()
    editor.project.close()
    yield request.param, operation, folder


@pytest.mark.parametrize("begun", OPERATIONS, indirect=True)
def test_a_fault_at_any_step(begun, tmp_path, demo_base, capsys):
    name, operation, start = begun

    unbroken = shutil.copytree(start, tmp_path / "unbroken")
    steps = steps_of(lambda: operation.act(unbroken, demo_base), tmp_path / "steps")
    expected_answers = answers_of(unbroken, demo_base, tmp_path)
    before, after = snapshot(shutil.copytree(start, tmp_path / "before")), snapshot(unbroken)
    points = [(nth, *step, kind) for nth, step in enumerate(steps, start=1) for kind in kinds_at(nth, step[0])]
    for nth, what, where, kind in points:
        at = f"{name}, step {nth} ({what} {where}), {kind}"
        folder = shutil.copytree(start, tmp_path / "struck")
        act = partial(operation.act, folder, demo_base)
        ended = in_child(act, Injector(nth, kind))
        assert ended == (-9 if kind in (KILL, POWER) else 1) or (ended == DONE and may_go_on(name, where)), at
        if nth % 2:  # the command must succeed with a repair before it and without
            check_nothing_is_lost(folder, before, after, at)
        assert in_child(act) == DONE, at
        check_nothing_is_lost(folder, before, after, at)
        assert verify(Project(folder), deep=True) == [], at
        assert snapshot(folder) == after, at
        if kind == KILL:  # equal bytes give equal answers: checked for one kind
            assert answers_of(folder, demo_base, tmp_path) == expected_answers, at
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{name}: {len(steps)} steps, {len(points)} points, 0 edits lost, 0 unclean after repair", end="")
    assert len(points) >= 15


def may_go_on(name, where):
    """Whether a command may go on after an error there: the lock's holder and the seal (whose name is flushed with the
    project's folder) are optional. W_merge is a cache: only `scen merge` fails if it cannot be written."""
    optional = ("scen.lock.holder", "scen.db.sha256", "unbroken", *(("merged.safetensors",) if name != "merge" else ()))
    return where.startswith(optional) or name == "migrate"


def kinds_at(nth, what):
    """The faults to try at a step: a kill, an error (each in turn, or all of them with SCEN_FAULTS=all), and a power
    cut where it may take more than a kill does."""
    errors = list(ERRORS) if os.environ.get("SCEN_FAULTS") == "all" else [list(ERRORS)[nth % len(ERRORS)]]
    return [KILL, *errors, *([POWER] if what in ("fsync", "fsync folder") else [])]


def answers_of(folder, base, scratch):
    """What the edited model answers. It runs in a child, so that this process's base is not patched."""
    assert in_child(partial(answers, folder, base, scratch / "answers")) == DONE
    return (scratch / "answers").read_text(encoding="utf-8")


def check_nothing_is_lost(folder, before, after, at):
    """Every edit is there, as before or after the operation, and `verify` is clean after a repair."""
    project = Project(folder)
    found = {row["id"]: row for row in snapshot(folder)["edits"]}
    assert {row["id"] for row in before["edits"]} <= set(found), at
    ends = [*before["edits"], *after["edits"]]
    assert all(row in ends for row in found.values()), at
    assert all(problem.kind != "damage" for problem in verify(project, deep=True)), at
    with project.writing():
        repair(project, deep=True)
    assert verify(project, deep=True) == [], at
    project.close()


def test_an_edit_file_is_flushed_then_renamed_then_committed(tmp_path, demo_base):
    """fsync before rename, rename before the folder's fsync, all before the commit."""
    folder = tmp_path / "p"
    editor = Editor(new_project(folder, "demo", recipe="key", base=demo_base), base=demo_base)
    editor.detach()
    steps = steps_of(lambda: OPERATIONS["supersede"].act(folder, demo_base), tmp_path / "steps")
    of_edit = [what for what, where in steps if where.startswith("000001") or where == "edits" or where == "scen.db"]
    wanted = ["create", "write", "fsync", "rename", "fsync folder", "BEGIN"]
    assert of_edit[: len(wanted)] == wanted
    assert of_edit[-1] == "COMMIT" or "COMMIT" in of_edit[len(wanted) :]
    assert {what for what, _where in steps} - FILE_STEPS <= {
        "BEGIN",
        "INSERT",
        "UPDATE",
        "SAVEPOINT",
        "RELEASE",
        "COMMIT",
    }


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_strace_sees_the_same_order(tmp_path):
    """The file is flushed before the rename, its name before the ledger is written, the journal before the ledger."""
    calls = "trace=openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink"
    command = ["strace", "-f", "-y", "-e", calls, sys.executable, "-m", "tests.faults.traced", str(tmp_path / "p")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    if "Operation not permitted" in done.stderr:
        pytest.skip("tracing is not permitted here")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stderr.split("created", 1)[1].splitlines()

    def line_of(pattern):
        return next(place for place, line in enumerate(lines) if re.search(pattern, line))

    wanted = [
        r"write\(.*/edits/000001-\w+\.safetensors\.tmp>",
        r"fsync\(.*/edits/000001-\w+\.safetensors\.tmp>",
        r'rename.*"[^"]*/edits/000001-\w+\.safetensors"',
        r"fsync\(.*/edits>",
        r"f(data)?sync\(.*/scen\.db-journal>",
        r"pwrite64\(.*/scen\.db>",
        r"f(data)?sync\(.*/scen\.db>",
    ]
    places = [line_of(pattern) for pattern in wanted]
    assert places == sorted(places)
    deleted = line_of(r'unlink.*/scen\.db-journal"')  # this is the commit
    assert deleted > places[-1]


def test_a_disk_that_is_full_inside_sqlite_loses_nothing(tmp_path, demo_base):
    """The system's limit on file size makes SQLite's own writes fail."""
    start = tmp_path / "start"
    editor = Editor(
        new_project(start, "demo", recipe="key", base=demo_base, changes={"expert": "low-rank", "rank": 1}),
        base=demo_base,
    )
    OPERATIONS["edit"].start(editor)
    editor.detach()
    editor.project.close()
    size = (start / "scen.db").stat().st_size
    failed = 0
    for limit in range(4096, size + 3 * 4096, 4096):
        folder = shutil.copytree(start, tmp_path / "full")

        failed += in_child(partial(within_a_limit, limit, folder, demo_base)) != DONE
        project = Project(folder)
        assert {edit.id for edit in project.ledger.edits()} >= {1, 2}
        assert all(problem.kind != "damage" for problem in verify(project, deep=True)), limit
        with project.writing():
            repair(project, deep=True)
        assert verify(project, deep=True) == []
        project.close()
        shutil.rmtree(folder)
    assert failed >= 5


def within_a_limit(limit, folder, base):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    OPERATIONS["supersede"].act(folder, base)
