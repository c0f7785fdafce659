"""`scen verify` without a model: checks the ledger and every file, and repairs what can be repaired."""

from __future__ import annotations

import re
import sqlite3

from scen_cli.errors import DamageFound
from scen_cli.project import disk
from scen_cli.project.check_files import Problem, edit_problems, guard_problems, merged_problems, state_problems
from scen_cli.project.edit_files import EDIT_FILE
from scen_cli.project.guard import GUARD_FILE, guard_setting
from scen_cli.project.ledger import Ledger
from scen_cli.project.ledger_check import integrity_problems
from scen_cli.project.lock import in_use
from scen_cli.project.method_state import STATE_FILE, state_setting
from scen_cli.project.project import Project
from scen_cli.project.seal import LEDGER, SEAL, rolled_back, seal, seal_problem
from scen_cli.project.w_merge import MERGED

MAX_TRIES = 5
STRAY = re.compile(
    rf"(?:{EDIT_FILE.pattern}|{GUARD_FILE.pattern}|{STATE_FILE.pattern})(?:\.tmp)?|(?:{re.escape(MERGED)}|{re.escape(SEAL)})\.tmp"
    rf"|{re.escape(LEDGER)}\.\d+\.new(?:-journal)?|\.restoring-\w+"
)


def verify(project: Project, deep: bool = False) -> list[Problem]:
    """Compare the ledger with itself and with the files.

    What another process has not finished writing (stray files, the cache, the seal) is not a problem.

    Args:
        project: The project.
        deep: Read every byte of the files and check their tensors; else only that they exist and have their size.

    Returns:
        What is wrong; empty if nothing is.
    """
    for _ in range(MAX_TRIES):
        head = project.ledger.head()
        busy = _others_write(project)
        problems = _verify(project, deep)
        busy = busy or _others_write(project)
        if not problems or project.ledger.head() == head:
            break  # else another process has changed the ledger during the check
    return [problem for problem in problems if problem.kind == "damage" or not busy]


def _others_write(project: Project) -> bool:
    return not project.is_writing and in_use(project.folder)


def _verify(project: Project, deep: bool) -> list[Problem]:
    problems = ledger_problems(project)
    try:
        edits = project.ledger.edits()
        problems += [problem for edit in edits for problem in edit_problems(project, edit, deep)]
        problems += guard_problems(project, deep) + state_problems(project, deep)
        problems += [Problem(name, "belongs to nothing", kind="stray") for name in stray_files(project)]
        if not any(problem.kind == "damage" for problem in problems):
            problems += merged_problems(project, deep)
    except (DamageFound, sqlite3.DatabaseError) as error:  # rows cannot be read: the files they name are not checked
        problems.append(Problem(LEDGER, str(error)))
    if deep and (wrong := seal_problem(project.folder)):
        problems.append(Problem(SEAL, wrong, kind="seal"))
    return problems


def ledger_problems(project: Project) -> list[Problem]:
    """What is wrong with the ledger itself, according to its log and its seal."""
    try:
        with project.ledger.reading():
            found = integrity_problems(project.ledger)
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise
        found = [f"cannot be read: {error}"]
    except DamageFound as error:
        found = [str(error)]
    if not found and rolled_back(project.folder, project.ledger):
        found = ["is not the ledger that was sealed, nor a later state of it: an older copy? Files may be ahead of it"]
    return [Problem(LEDGER, text) for text in found]


def repair(project: Project, deep: bool = False) -> list[str]:
    """Remove stray files, and rebuild the merged neurons and the seal. Call inside `project.writing()`.

    If anything is damaged, no file is removed: it may be the missing one. A damaged ledger is not sealed.

    Returns:
        What was done.
    """
    project.check_writing()
    done = []
    problems = verify(project, deep)
    intact = not any(problem.kind == "damage" for problem in problems)
    for problem in problems:
        if problem.kind == "stray" and intact:
            disk.remove(project.folder / problem.where)
            done.append(f"removed `{problem.where}`, which {problem.what}")
        elif problem.kind == "cache" and intact:
            project.merge()
            done.append(f"rebuilt `{problem.where}`")
        elif problem.kind == "seal" and not any(other.where == LEDGER for other in problems):
            (project.folder / SEAL).unlink(missing_ok=True)
            seal(project.folder, project.ledger)
            done.append(f"sealed `{LEDGER}` again: every row agrees with the log")
    return done


def named_files(ledger: Ledger) -> dict[str, str | None]:
    """Every file that the ledger names, and its sha256."""
    named = {edit.file: edit.sha256 for edit in ledger.edits() if edit.file}
    settings = (guard_setting(ledger), state_setting(ledger))
    return {**named, **{str(setting["file"]): str(setting["sha256"]) for setting in settings if setting}}


def stray_files(project: Project) -> list[str]:
    """Files that only scen writes and no row names: a killed process left them. All other files are the user's."""
    folder = project.folder
    folders = [folder, *([folder / "edits"] if not (folder / "edits").is_symlink() else [])]
    found = {path.relative_to(folder).as_posix() for place in folders if place.is_dir() for path in place.iterdir()}
    return sorted({name for name in found if STRAY.fullmatch(name)} - set(named_files(project.ledger)))
