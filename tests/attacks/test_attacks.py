"""Every attack ends with the right exit code and a message: no traceback, code execution, hang or high memory use."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scen_cli.cli import app
from tests.attacks import checkpoints, experts, ledger, records, settings
from tests.attacks.attack import Attack, Ground

pytestmark = pytest.mark.slow

ATTACKS = [*experts.ATTACKS, *ledger.ATTACKS, *settings.ATTACKS, *records.ATTACKS, *checkpoints.ATTACKS]
MEMORY = 300 << 10  # KiB: what all attacks together may use in addition
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # for a terminal or its reader


@pytest.fixture(scope="session")
def healthy(tmp_path_factory, demo_base) -> Path:
    """A small project with a guard, low-rank experts and two edits."""
    from scen_cli.data.suites import demo_edits, load_suite
    from scen_cli.editing.create_project import new_project
    from scen_cli.editing.editor import Editor
    from tests.conftest import edit_all

    folder = tmp_path_factory.mktemp("healthy")
    guard = folder / "guard.jsonl"
    guard.write_text("".join(f'{{"prompt": "{prompt}"}}\n' for prompt in load_suite("demo").locality[:100]))
    changes = {"rank": 4, "false_activation": 0.05, "prompt_augmentations": 0, "expert_steps": 30}
    project = new_project(folder / "p", "demo", guard=guard, changes=changes, base=demo_base)
    editor = Editor(project, base=demo_base)
    made = edit_all(editor, demo_edits()[:2])
    editor.detach()
    project.close()
    assert [edit.state for edit in made] == ["active", "active"]
    return project.folder


def make(attack: Attack, healthy: Path, folder: Path) -> list[str]:
    """Prepare an attack and run its command. Returns what is wrong with the outcome."""
    ground = Ground(folder)
    shutil.copytree(healthy, ground.project)
    attack.prepare(ground)
    started = time.monotonic()
    result = CliRunner().invoke(app, ground.words(attack.command))
    seconds = time.monotonic() - started
    output = f"{result.stdout}\n{result.stderr}"
    wrong = []
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        wrong.append(f"traceback: {result.exception!r}")
    if result.exit_code != attack.code:
        wrong.append(f"exit code {result.exit_code}, not {attack.code}")
    if attack.says not in output:
        wrong.append(f"does not say {attack.says!r}")
    if found := _CONTROL.findall(output):
        wrong.append(f"control characters came through: {found[:3]!r}")
    if ground.canary.exists():
        wrong.append("code ran")
    if seconds > attack.seconds:
        wrong.append(f"took {seconds:.0f} s")
    return [*wrong, output[-2000:]] if wrong else []


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_ends_with_the_right_code_and_message(attack, healthy, tmp_path):
    wrong = make(attack, healthy, tmp_path)
    assert not wrong, "\n".join(wrong)


def test_attacks_are_many_and_have_unique_names():
    names = [attack.name for attack in ATTACKS]
    assert len(names) >= 70
    assert len(set(names)) == len(names)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_all_attacks_together_use_little_memory(healthy, tmp_path):
    """In a child process, whose peak memory is that of the attacks alone."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_run_all, args=(healthy, tmp_path, writer))
    child.start()
    child.join(600)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0
    used, worst = reader.recv()
    assert used < MEMORY, f"{used >> 10} MiB, most of them by {worst}"


def _run_all(healthy: Path, folder: Path, writer) -> None:
    first, worst, name = _peak(), 0, ""
    for number, attack in enumerate(ATTACKS):
        before = _peak()
        make(attack, healthy, folder / str(number))
        if _peak() - before > worst:
            worst, name = _peak() - before, attack.name
        shutil.rmtree(folder / str(number))
    writer.send((_peak() - first, name))


def _peak() -> int:
    """The peak memory of this process, in KiB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
