"""Tests which versions of transformers read exports and run scen: `python -m benchmarks.compatibility [--json FILE]`

Installs each version and its dependencies into its own folder, next to this environment's torch. Without scen on the
path, it loads a full export, a patch-only export and a plain checkpoint; their answers must equal scen's
(`tests/export/read_export.py`). With each version that scen accepts, scen must answer a project's prompts. Needs the
network. Prints a table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import demo_editor, make_parser
from benchmarks.page import report
from scen_cli import export_checkpoint, export_merged
from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts

VERSIONS = ("4.57.6", "5.0.0", "5.8.0", "5.16.1", "5.23.0")
READER = Path(__file__).parents[1] / "tests" / "export" / "read_export.py"
EDITS = 20


def main() -> None:
    options = make_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report("compatibility", {"found": compare(Path(folder))}, options.json)


def compare(folder: Path) -> list[dict[str, object]]:
    records = demo_edits()[:EDITS]
    editor = demo_editor(folder / "project", records)
    prompts = [record.prompt for record in records] + [fact.phrasings[0] for fact in right_facts()[:40]]
    own = editor.answer(prompts).texts
    with_edit_1 = editor.answer(prompts, edits=[1] * len(prompts)).texts
    export_checkpoint(editor, folder / "full")
    export_checkpoint(editor, folder / "patch", patch_only=True)
    export_merged(editor, folder / "plain", edit=1)
    editor.project.close()
    found = []
    for version in VERSIONS:
        packages = folder / version
        install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(packages), f"transformers=={version}"]
        subprocess.run(install, check=True)
        runs = {name: _export_answers(folder / name, packages, prompts, own) for name in ("full", "patch")}
        runs["plain"] = _export_answers(folder / "plain", packages, prompts, with_edit_1)
        runs["scen"] = version.startswith("5") and _scen_answers(folder / "project", packages, prompts[:3], own[:3])
        print(version, runs, flush=True)
        found.append({"version": version, "runs": runs})
    return found


def _export_answers(export: Path, packages: Path, prompts: list[str], expected: list[str]) -> bool:
    """Whether the export loads completely and gives the expected answers, in mixed batches and one at a time."""
    request = json.dumps({"prompts": prompts, "alone": prompts, "pipeline": []})
    done = _run([str(READER), str(export)], packages, request)
    if done.returncode:
        print(done.stderr[-500:])
        return False
    response = json.loads(done.stdout)
    complete = not any(response["loading"].values())
    return complete and response["mixed"] == response["alone"] == expected


def _scen_answers(project: Path, packages: Path, prompts: list[str], expected: list[str]) -> bool:
    answers = []
    for prompt in prompts:
        done = _run(["-m", "scen_cli", "ask", prompt, "--dir", str(project), "--json"], packages, "")
        answers.append(json.loads(done.stdout)["patched"] if done.returncode == 0 else done.stderr[-300:])
    if answers != expected:
        print(answers)
    return answers == expected


def _run(arguments: list[str], packages: Path, text: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, *arguments], input=text, capture_output=True, text=True, env=environment)


if __name__ == "__main__":
    main()
