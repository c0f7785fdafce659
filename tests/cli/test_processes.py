"""Commands in processes of their own: imports, signals, and runs that are killed and continued."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from scen_cli.cli.output import Output
from scen_cli.cli.run_edits import edit_suite
from scen_cli.data.suites import Suite, demo_edits
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.project.check import repair, verify
from scen_cli.project.project import Project


def test_help_imports_neither_torch_nor_transformers():
    code = (
        "import sys; sys.argv = ['scen', '--help']\n"
        "from scen_cli.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'sqlite_utils'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "heavy: []" in out


def test_python_m_scen_cli():
    command = [sys.executable, "-m", "scen_cli", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("scen ")


def test_a_closed_standard_output_stops_no_command(edited):
    command = f"{sys.executable} -m scen_cli status --dir {edited.project.folder} >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_ledger_commands_need_no_torch(edited):
    code = (
        "import sys; from scen_cli.cli import app\n"
        f"at = ['--dir', {str(edited.project.folder)!r}]\n"
        "for command in (['status'], ['log'], ['show', '1'], ['verify'], ['merge']):\n"
        "    app([*command, *at], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def _edit_run(project: Project, base, edits: int) -> None:
    """What `scen edit --suite demo --first EDITS --quiet` does."""
    suite = Suite("demo", demo_edits()[:edits], [])
    edit_suite(Editor(Project(project.folder), base=base), suite, Output(quiet=True))


def _kill_once_it_has(project: Project, base, edits: int, count: int, delay: float) -> int:
    """Fork a run of EDITS edits, kill it DELAY seconds after the ledger holds COUNT of them; the edits it left.

    By progress, not by time alone: on a busy machine a process given a share of an unbroken run's seconds
    may never get to an edit.
    """
    opened = Project(project.folder)
    child = os.fork()
    if child == 0:
        _edit_run(project, base, edits)
        os._exit(0)
    while len(opened.ledger.edits()) < count and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = len(opened.ledger.edits())
    problems = verify(opened)
    assert all(problem.kind != "damage" for problem in problems), problems
    opened.close()
    return left


@pytest.mark.parametrize(("edits", "kills"), [(10, 4), pytest.param(30, 10, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_continues_and_makes_each_edit_once(tmp_path, demo_base, edits, kills):
    """The killed processes are forked from this one, which has imported everything."""
    unbroken = new_project(tmp_path / "unbroken", "demo", recipe="key", base=demo_base)
    started = time.perf_counter()
    _edit_run(unbroken, demo_base, edits)
    seconds_per_edit = (time.perf_counter() - started) / edits
    rng, left = random.Random(7), [0]
    project = new_project(tmp_path / "killed", "demo", recipe="key", base=demo_base)
    for _ in range(kills):
        count = min(left[-1] + rng.randint(0, 2), edits - 2)
        left.append(_kill_once_it_has(project, demo_base, edits, count, rng.uniform(0, 2) * seconds_per_edit))
    assert left == sorted(left)  # no kill loses an edit that was committed
    assert len(set(left)) >= 3  # the kills came at different moments of the run
    _edit_run(project, demo_base, edits)
    with project.writing():
        repair(project)
    assert verify(project) == []
    rows = [[(e.prompt, e.state, e.sha256) for e in p.ledger.edits()] for p in (project, unbroken)]
    assert rows[0] == rows[1]  # each edit once, with the same bytes
    assert (project.folder / "merged.safetensors").read_bytes() == (unbroken.folder / "merged.safetensors").read_bytes()


@pytest.mark.slow
def test_sigint_of_a_process_keeps_committed_edits(tmp_path, demo_base, scen):
    project = new_project(tmp_path / "p", "demo", recipe="key", base=demo_base)
    command = [sys.executable, "-m", "scen_cli", "edit", "--suite", "demo", "--dir", str(project.folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(project.ledger.edits()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "every edit committed so far is kept" in stderr
    assert "Traceback" not in stderr
    assert 3 <= len(project.ledger.edits()) < len(demo_edits())
    assert project.w_merge().experts == [edit.id for edit in project.ledger.edits("active")]
    assert all(problem.kind != "damage" for problem in verify(project))
    assert json.loads(scen("status", "--dir", project.folder, "--json").stdout)["states"]["active"] >= 3
