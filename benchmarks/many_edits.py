"""Times opening a project of 10,000 edits: `python -m benchmarks.many_edits [--edits 10000] [--json FILE]`

Compares it with a project of one edit: seconds to open it for answers and for editing, seconds of one `scen ask`, each
in its own process, and peak memory. Prints a table.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.measuring import make_parser, peak_megabytes, run_module, seconds_of
from benchmarks.page import report
from benchmarks.synthetic import make_project
from scen_cli import Editor, PatchedModel, Project, load_base
from scen_cli.demo.world import further_facts


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--open", type=Path, help="measure only this project, and print JSON")
    options = parser.parse_args()
    if options.open:
        print(json.dumps(_open(options.open)))
        return
    facts = further_facts(options.edits)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for edits in (1, options.edits):
            project = Path(folder) / str(edits)
            make_project(project, facts[:edits], load_base("demo", device="cpu")).close()
            opened = run_module("benchmarks.many_edits", "--open", project)
            found.append({"edits": edits, **opened, "ask_command": _ask_command(project, facts[0].phrasings[0])})
    report("many_edits", {"found": found}, options.json)


def _open(folder: Path) -> dict[str, float]:
    base = load_base("demo", device="cpu")
    started = time.perf_counter()
    project = Project(folder)
    model = PatchedModel(project, base=base)
    model.patch()
    opened = time.perf_counter()
    answers = model.answer([project.find(1).prompt])
    assert answers.edits == [1]
    answered = time.perf_counter()
    peak = peak_megabytes()
    editor = Editor(project, base=base)
    editor.index.load()
    ended = time.perf_counter()
    times = {"open_to_ask": opened - started, "answer": answered - opened, "open_to_edit": ended - answered}
    return {**times, "peak_mb": peak}


def _ask_command(project: Path, prompt: str) -> float:
    """The median of three runs; each starts Python, imports torch and loads the base."""
    command = [sys.executable, "-m", "scen_cli", "ask", prompt, "--dir", str(project), "--quiet"]
    run = partial(subprocess.run, command, check=True, capture_output=True)
    return statistics.median(seconds_of(run) for _ in range(3))


if __name__ == "__main__":
    main()
