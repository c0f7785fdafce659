"""Kills at random moments, many of them: `python -m tests.faults.kills 200`.

A run of edits is forked, killed at a random moment, and run again, until there were this many kills. After each kill
the project verifies. At the end every record is there once, byte for byte as in a run without kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from scen_cli.cli.output import Output
from scen_cli.cli.run_edits import edit_suite
from scen_cli.data.suites import Suite, demo_edits
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.model.base import Base, load_base
from scen_cli.project.check import repair, verify
from scen_cli.project.project import Project

RECIPE = {"expert": "low-rank", "rank": 4, "require_learned": 0}
LONGEST = 0.4  # seconds until a kill, at most: a run of a few edits


def run(folder: Path, base: Base, records: list) -> None:
    """What `scen edit` does, in a process that need not import anything."""
    edit_suite(Editor(Project(folder), base=base), Suite("demo", records, []), Output(quiet=True))


def killed_at(folder: Path, base: Base, records: list, seconds: float) -> bool:
    """Whether the run was still going on when it was killed."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        run(folder, base, records)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def content(folder: Path) -> list[tuple[object, ...]]:
    rows = Project(folder).ledger.edits()
    return [(edit.id, edit.prompt, edit.target, edit.state, edit.sha256, edit.bias) for edit in rows]


def main(kills: int) -> None:
    base, rng, where = load_base("demo", device="cpu"), random.Random(7), Path(tempfile.mkdtemp())
    done, projects, found = 0, 0, set()
    while done < kills:
        records = demo_edits()[projects * 100 : projects * 100 + 100]
        whole, struck = (where / f"{name}{projects}" for name in ("whole", "struck"))
        for folder in (whole, struck):
            new_project(folder, "demo", recipe="key", base=base, changes=RECIPE).close()
        while done < kills and len(content(struck)) < len(records):
            done += killed_at(struck, base, records, rng.uniform(0.01, LONGEST))
            found |= {problem.kind for problem in verify(Project(struck), deep=True)}
            assert "damage" not in found, verify(Project(struck), deep=True)
        run(struck, base, records)
        run(whole, base, records)
        project = Project(struck)
        with project.writing():
            repair(project, deep=True)
        assert verify(project, deep=True) == []
        assert content(struck) == content(whole)
        assert (struck / "merged.safetensors").read_bytes() == (whole / "merged.safetensors").read_bytes()
        projects += 1
        print(f"{done} kills, {len(records)} edits: 0 lost, 0 doubled, each as in a run without kills", flush=True)
    print(f"{done} kills in {projects} projects; repaired on the way: {', '.join(sorted(found))}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
