"""What an export and scen itself run with: `python -m benchmarks.compatibility [--json FILE]`

For each version of transformers (and what it depends on), installed into a folder of its own beside this environment's
torch: a full export, a patch alone and a plain checkpoint are loaded where scen cannot be imported, and must answer as
scen does (`tests/export/read_export.py`); and scen itself must answer a project's prompts, if it takes that version.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measuring import show, write
from scen_cli import Editor, export_checkpoint, export_merged, new_project
from scen_cli.data.suites import demo_edits
from scen_cli.demo.facts import right_facts

VERSIONS = ("4.57.6", "5.0.0", "5.8.0", "5.16.1", "5.23.0")
READER = Path(__file__).parents[1] / "tests" / "export" / "read_export.py"
EDITS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder))
    columns = ["transformers", "export", "--patch-only", "plain checkpoint", "scen itself"]
    show("", columns, [[one["version"], *("yes" if ok else "no" for ok in one["runs"].values())] for one in found])
    write(chosen.json, {"found": found})


def compare(folder: Path) -> list[dict[str, object]]:
    records = demo_edits()[:EDITS]
    editor = Editor(new_project(folder / "project", "demo", device="cpu"), "cpu")
    with editor.project.writing():
        for record in records:
            editor.edit(record)
        editor.project.merge()
    prompts = [record.prompt for record in records] + [fact.phrasings[0] for fact in right_facts()[:40]]
    own = editor.answer(prompts).texts
    alone = editor.answer(prompts, edits=[1] * len(prompts)).texts
    export_checkpoint(editor, folder / "full")
    export_checkpoint(editor, folder / "patch", patch_only=True)
    export_merged(editor, folder / "plain", edit=1)
    editor.project.close()
    found = []
    for version in VERSIONS:
        beside = folder / version
        install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(beside), f"transformers=={version}"]
        subprocess.run(install, check=True)
        runs = {name: _reads(folder / name, beside, prompts, own) for name in ("full", "patch")}
        runs["plain"] = _reads(folder / "plain", beside, prompts, alone)
        runs["scen"] = version.startswith("5") and _asks(folder / "project", beside, prompts[:3], own[:3])
        print(version, runs, flush=True)
        found.append({"version": version, "runs": runs})
    return found


def _reads(export: Path, beside: Path, prompts: list[str], wanted: list[str]) -> bool:
    asked = json.dumps({"prompts": prompts, "alone": prompts, "pipeline": []})
    done = _run([str(READER), str(export)], beside, asked)
    if done.returncode:
        print(done.stderr[-500:])
        return False
    told = json.loads(done.stdout)
    complete = not any(told["loading"].values())
    return complete and told["mixed"] == told["alone"] == wanted


def _asks(project: Path, beside: Path, prompts: list[str], wanted: list[str]) -> bool:
    told = []
    for prompt in prompts:
        done = _run(["-m", "scen_cli", "ask", prompt, "--dir", str(project), "--json"], beside, "")
        told.append(json.loads(done.stdout)["patched"] if done.returncode == 0 else done.stderr[-300:])
    if told != wanted:
        print(told)
    return told == wanted


def _run(arguments: list[str], beside: Path, text: str) -> subprocess.CompletedProcess[str]:
    known = {**os.environ, "PYTHONPATH": os.pathsep.join([str(beside), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, *arguments], input=text, capture_output=True, text=True, env=known)


if __name__ == "__main__":
    main()
