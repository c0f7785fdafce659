"""A project of 10,000 edits: `python -m benchmarks.many_edits [--edits 10000] [--json FILE]`

Seconds to open it for asking and for editing, beside the same of one edit; one `scen ask` as a whole, in processes of
their own; and the most memory each held.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measuring import peak_megabytes, show, write
from benchmarks.synthetic import make_project
from scen_cli import Editor, Project, load_base
from scen_cli.demo.world import further_facts
from scen_cli.editing.patched_model import PatchedModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--open", type=Path, help="this project alone, as JSON")
    chosen = parser.parse_args()
    if chosen.open:
        print(json.dumps(_open(chosen.open)))
        return
    facts = further_facts(chosen.edits)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for edits in (1, chosen.edits):
            project = Path(folder) / str(edits)
            make_project(project, facts[:edits], load_base("demo", device="cpu")).close()
            command = [sys.executable, "-m", "benchmarks.many_edits", "--open", str(project)]
            opened = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            found.append({"edits": edits, **opened, "ask_command": _ask_command(project, facts[0].phrasings[0])})
    columns = [
        "edits#",
        "open to ask, s#",
        "first answer, s#",
        "peak MB#",
        "open to edit, s#",
        "`scen ask` as a whole, s#",
    ]
    names = ("open_to_ask", "answer", "peak_mb", "open_to_edit", "ask_command")
    show("", columns, [[f"{one['edits']:,}", *(f"{one[name]:.2f}" for name in names)] for one in found])
    write(chosen.json, {"found": found})


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
    """The median of three: each starts Python, imports torch and loads the base."""
    took = []
    for _ in range(3):
        started = time.perf_counter()
        command = [sys.executable, "-m", "scen_cli", "ask", prompt, "--dir", str(project), "--quiet"]
        subprocess.run(command, check=True, capture_output=True)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
