"""The operations that change a project. Each can be stopped at any step and run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scen_cli.cli.output import Output
from scen_cli.cli.run_edits import edit_suite
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import Suite, demo_edits
from scen_cli.editing.compress_experts import compress
from scen_cli.editing.editor import Editor
from scen_cli.editing.revert_edits import revert_edits
from scen_cli.errors import UsageError
from scen_cli.project.check import find_unused_files, remove_unused_files
from scen_cli.project.ledger import now
from scen_cli.project.ledger_rows import Threshold
from scen_cli.project.project import Project

FACTS = [record.model_copy(update={"rephrases": ()}) for record in demo_edits()[:6]]
NAMES = "id prompt target state superseded_by sha256 size bias activation rank expert".split()  # of an edit
QUIET = Output(quiet=True)


@dataclass(frozen=True)
class Operation:
    """`start` makes the project before the operation; `act` runs it, or completes it."""

    start: Callable[[Editor], None]
    act: Callable[[Path, Any], None]


def edit(folder: Path, base: Any, records: list[EditRecord]) -> None:
    editor = Editor(Project(folder, author="tester"), base=base)
    try:
        edit_suite(editor, Suite("demo", records, []), QUIET)
    finally:
        editor.detach()


def two_edits(editor: Editor) -> None:
    edit_suite(editor, Suite("demo", FACTS[:2], []), QUIET)


def nothing(_editor: Editor) -> None:
    pass


def supersede(folder: Path, base: Any) -> None:
    edit(folder, base, [FACTS[0].model_copy(update={"target": FACTS[2].target})])


def take_back(folder: Path, _base: Any) -> None:
    project = Project(folder, author="tester")
    with project.writing():
        if project.find(1).state == "active":
            revert_edits(project, 1)
        else:
            project.merge()


def merge(folder: Path, _base: Any) -> None:
    project = Project(folder)
    (folder / "merged.safetensors").unlink(missing_ok=True)
    with project.writing():
        project.merge()


def calibrate(folder: Path, _base: Any) -> None:
    project = Project(folder, author="tester")
    with project.writing():
        if project.ledger.theta() != 0.7:
            project.set_threshold(Threshold(0.7, "hand", now()))


def compress_experts(folder: Path, base: Any) -> None:
    editor = Editor(Project(folder, author="tester"), base=base)
    try:
        with editor.project.writing():
            compress(editor, 8, lambda _line, _pace: None)
    except UsageError as error:
        if "no full experts" not in str(error):  # then it was complete before the fault
            raise
    finally:
        editor.detach()


def remove_unused(folder: Path, _base: Any) -> None:
    project = Project(folder, author="tester")
    with project.writing():
        remove_unused_files(project, find_unused_files(project))


def evaluate(folder: Path, _base: Any) -> None:
    project = Project(folder, author="tester")
    with project.writing():
        if not project.ledger.evaluations():
            project.record_evaluation("mine", {"n": 1}, {"figures": {}}, project.ledger.last_change(), [{"a": "b"}])


def reverted(editor: Editor) -> None:
    two_edits(editor)
    take_back(editor.project.folder, None)


def migrate(folder: Path, _base: Any) -> None:
    """Open a project of format 1. `test_faults` adds a second migration."""
    Project(folder, author="tester").close()


OPERATIONS = {
    "edit": Operation(two_edits, lambda folder, base: edit(folder, base, FACTS[2:4])),
    "supersede": Operation(two_edits, supersede),
    "revert": Operation(two_edits, take_back),
    "merge": Operation(two_edits, merge),
    "calibrate": Operation(two_edits, calibrate),
    "compress": Operation(two_edits, compress_experts),
    "gc": Operation(reverted, remove_unused),
    "migrate": Operation(nothing, migrate),
    "evaluate": Operation(two_edits, evaluate),
}


def snapshot(folder: Path) -> dict[str, Any]:
    """Rows, history of the threshold, and every file of a project, without times."""
    project = Project(folder)
    edits = [{name: getattr(edit, name) for name in NAMES} for edit in project.ledger.edits()]
    thetas = [(row.theta, row.chosen_by) for row in project.ledger.thresholds()]
    patterns = ("edits/*.safetensors", "guard-*.safetensors", "merged.safetensors")
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes().__hash__()
        for pattern in patterns
        for path in folder.glob(pattern)
    }
    evaluations = [(row["suite"], json.dumps(row["metrics"])) for row in project.ledger.evaluations()]
    project.close()
    return {"edits": edits, "thetas": thetas, "files": files, "evaluations": evaluations}


def answers(folder: Path, base: Any, file: Path) -> None:
    """Write the answers of the edited model to the facts, and the edits that they were routed to."""
    editor = Editor(Project(folder), base=base)
    found = editor.answer([record.prompt for record in FACTS[:4]], max_new_tokens=12)
    file.write_text(json.dumps([found.texts, found.edits]), encoding="utf-8")
    editor.detach()
