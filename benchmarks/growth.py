"""Times commands in projects of growing size: `python -m benchmarks.growth WORK [--json FILE]`

CPU seconds of `scen status`, one `scen edit`, `scen revert` of the edit in the middle, and `scen verify`, each in its
own process, median of three. Edits are synthetic, on the toy base. WORK keeps the projects for the next run.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.measuring import make_parser
from benchmarks.page import report
from benchmarks.synthetic import make_project
from scen_cli import load_base
from scen_cli.demo.world import further_facts

EDIT = ("edit", "--prompt", "Which lake is near Zorbanov Kale?", "--target", "Huron")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--edits", type=int, nargs="+", default=[1000, 10_000, 20_000])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = [{"edits": edits, **_times(_project(options.work, edits), edits)} for edits in options.edits]
    report("growth", {"found": found}, options.json)


def _project(work: Path, edits: int) -> Path:
    folder = work / str(edits)
    if not folder.exists():
        draft = work / f"{edits}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        make_project(draft, further_facts(edits), load_base("demo", device="cpu")).close()
        draft.rename(folder)
    return folder


def _times(project: Path, edits: int) -> dict[str, float]:
    commands = {
        "status": ("status",),
        "edit": EDIT,
        "revert": ("revert", str(edits // 2)),
        "verify": ("verify",),
    }
    runs = []
    for _ in range(3):
        copy = project.with_suffix(".copy")
        shutil.copytree(project, copy)
        runs.append({name: _cpu_seconds(command, copy) for name, command in commands.items()})
        shutil.rmtree(copy)
    return {name: statistics.median(run[name] for run in runs) for name in commands}


def _cpu_seconds(command: tuple[str, ...], project: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "scen_cli", *command, "--dir", str(project)], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
