"""What only a process of its own can show: imports, signals, and a killed run that goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

from scen_cli.data.suites import demo_edits
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


def test_python_dash_m():
    command = [sys.executable, "-m", "scen_cli", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("scen ")


def test_ledger_commands_need_no_torch(edited):
    code = (
        "import sys; from scen_cli.cli import app\n"
        f"at = ['--dir', {str(edited.project.folder)!r}]\n"
        "for command in (['status'], ['log'], ['show', '1'], ['verify'], ['merge']):\n"
        "    app([*command, *at], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def _edit_run(project: Project, base) -> None:
    """What `scen edit --suite demo --first 30 --quiet` does, in a process that need not import anything."""
    from scen_cli.cli.edit import train_all
    from scen_cli.cli.output import Output
    from scen_cli.data.suites import Suite

    train_all(Editor(Project(project.folder), base=base), Suite("demo", demo_edits()[:30], []), Output(quiet=True))


def test_sigkill_at_ten_random_moments_loses_and_doubles_nothing(tmp_path, demo_base):
    """Forked from this warm process, killed anywhere in the run, run again until done."""
    whole = new_project(tmp_path / "whole", "demo", recipe="key", base=demo_base)
    started = time.perf_counter()
    _edit_run(whole, demo_base)
    seconds = time.perf_counter() - started
    rng, killed_between = random.Random(7), set()
    project = new_project(tmp_path / "killed", "demo", recipe="key", base=demo_base)
    for _ in range(10):
        child = os.fork()
        if child == 0:
            _edit_run(project, demo_base)
            os._exit(0)
        time.sleep(rng.uniform(0.05, 0.6) * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        again = Project(project.folder)
        killed_between.add(len(again.ledger.edits()))
        problems = verify(again)
        assert all(problem.kind != "damage" for problem in problems), problems
        again.close()
    assert len(killed_between) >= 3  # the kills fell at different places of the run
    _edit_run(project, demo_base)
    with project.writing():
        repair(project)
    assert verify(project) == []
    killed, unbroken = ([(e.prompt, e.state, e.sha256) for e in p.ledger.edits()] for p in (project, whole))
    assert killed == unbroken  # every edit once, and byte for byte the same
    assert (project.folder / "merged.safetensors").read_bytes() == (whole.folder / "merged.safetensors").read_bytes()


def test_control_c_keeps_what_is_committed(tmp_path, demo_base, scen):
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
