"""`scen verify` and `scen gc` without a model: check the ledger and every file, and repair or remove what can be."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.project import disk
from scen_cli.project.check_files import Problem, edit_problems, guard_problems, merged_problems, state_problems
from scen_cli.project.edit_files import EDIT_FILE
from scen_cli.project.event_log import chain_problems, contradictions, replay_events
from scen_cli.project.guard import GUARD_FILE, guard_setting
from scen_cli.project.ledger import Ledger
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.lock_and_seal import LEDGER, NOT_SEALED, SEAL, in_use, rolled_back, seal, seal_problem
from scen_cli.project.method_state import STATE_FILE, state_setting
from scen_cli.project.project import Project
from scen_cli.project.schema import schema_problems
from scen_cli.project.w_merge import MERGED

Progress = Callable[[int, int], None]  # called with how many are done, and the total

MAX_TRIES = 5
LOST = "lost"  # edit files that no row names
STRAY = re.compile(
    rf"(?:{EDIT_FILE.pattern}|{GUARD_FILE.pattern}|{STATE_FILE.pattern})(?:\.tmp)?|(?:{re.escape(MERGED)}|{re.escape(SEAL)})\.tmp"
    rf"|{re.escape(LEDGER)}\.\d+\.new(?:-journal)?|\.restoring-\w+"
)


def log_problems(ledger: Ledger) -> list[str]:
    """Where the event log's chain is broken, and where the tables contradict the events."""
    try:
        names = ("events", "edits", "thresholds", "evaluations", "guard")
        tables = {name: list(ledger.db[name].rows_where(order_by="id")) for name in names}
        settings, problems = _settings(ledger)
        problems += contradictions(replay_events(tables["events"]), tables, settings)
        return chain_problems(tables["events"]) + problems
    except (LookupError, TypeError, ValueError) as error:  # a column holds a type that scen does not write
        return [f"the log or a row cannot be read: {error}"]


def _settings(ledger: Ledger) -> tuple[dict[str, Any], list[str]]:
    """The settings that can be read, and what is wrong with the others."""
    settings: dict[str, Any] = {}
    problems = []
    for row in ledger.db["settings"].rows:
        try:
            settings[row["name"]] = json.loads(row["value"])
        except (TypeError, ValueError):
            problems.append(f"setting `{row['name']}` cannot be read")
    return settings, problems


def verify(project: Project, deep: bool = False, progress: Progress | None = None) -> list[Problem]:
    """Compare the ledger with itself and with the files.

    What another process has not finished writing (stray files, the cache, the seal) is not a problem.

    Args:
        project: The project.
        deep: Read every byte of the files and check their tensors; else only that they exist and have their size.
        progress: Called with the number of edits checked so far, and of all.

    Returns:
        What is wrong; empty if nothing is.
    """
    for _ in range(MAX_TRIES):
        head = project.ledger.head()
        busy = _others_write(project)
        problems = _verify(project, deep, progress)
        busy = busy or _others_write(project)
        if not problems or project.ledger.head() == head:
            break  # else another process has changed the ledger during the check
    return [problem for problem in problems if problem.kind == "damage" or not busy]


def _others_write(project: Project) -> bool:
    return not project.is_writing and in_use(project.folder)


def _verify(project: Project, deep: bool, progress: Progress | None) -> list[Problem]:
    problems = ledger_problems(project)
    try:
        edits = project.ledger.edits()
        for done, edit in enumerate(edits, start=1):
            problems += edit_problems(project, edit, deep)
            if progress:
                progress(done, len(edits))
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
            results = [row[0] for row in project.ledger.db.execute("pragma integrity_check").fetchall()]
            found = [f"scen.db: {result}" for result in results if result != "ok"] + schema_problems(project.ledger.db)
            found = found or log_problems(project.ledger)  # the log says nothing about other tables
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise
        found = [f"cannot be read: {error}"]
    except DamageFound as error:
        found = [str(error)]
    if not found and rolled_back(project.folder, project.ledger):
        found = [f"{NOT_SEALED} Files may be ahead of it"]
    return [Problem(LEDGER, text) for text in found]


def repair(project: Project, deep: bool = False) -> list[str]:
    """Set stray files aside, and rebuild the merged neurons and the seal. Call inside `project.writing()`.

    Stray edit files move to the folder `lost`: `scen rebuild` can make edits of them. If anything is damaged, no file
    is touched: it may be the missing one. A damaged ledger is not sealed.

    Returns:
        What was done.
    """
    project.check_writing()
    done = []
    problems = verify(project, deep)
    intact = not any(problem.kind == "damage" for problem in problems)
    for problem in problems:
        if problem.kind == "stray" and intact:
            if EDIT_FILE.fullmatch(problem.where):
                _move_to_lost(project, problem.where)
                done.append(f"moved `{problem.where}`, which {problem.what}, to `{LOST}/`")
            else:
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


def accept_ledger(project: Project) -> list[str]:
    """Go on with a ledger that is an older copy of the sealed one. Call inside `project.writing(even_if_older=True)`.

    The files that it does not name, among them those of the newer edits, are moved to the folder `lost`.

    Returns:
        What was done.

    Raises:
        DamageFound: The ledger has another fault.
    """
    project.check_writing()
    if not rolled_back(project.folder, project.ledger):
        return []
    problems = [problem.what for problem in ledger_problems(project) if not problem.what.startswith(NOT_SEALED)]
    if problems:
        raise DamageFound(f"the ledger is not accepted: {problems[0]}", hint=VERIFY_HINT)
    lost = stray_files(project)
    for name in lost:
        _move_to_lost(project, name)
    seal(project.folder, project.ledger)
    return [f"moved `{name}`, which no row names, to `{LOST}/`" for name in lost] + [f"sealed `{LEDGER}` as it is"]


def _move_to_lost(project: Project, name: str) -> None:
    disk.make_folder(project.folder / LOST)
    disk.rename(project.folder / name, project.folder / LOST / Path(name).name)


def named_files(ledger: Ledger) -> dict[str, str]:
    """Every file that the ledger names, and its sha256."""
    named = {edit.file: str(edit.sha256) for edit in ledger.edits() if edit.file}
    settings = (guard_setting(ledger), state_setting(ledger))
    return {**named, **{str(setting["file"]): str(setting["sha256"]) for setting in settings if setting}}


def stray_files(project: Project) -> list[str]:
    """Files that only scen writes and no row names: a killed process left them. All other files are the user's."""
    folder = project.folder
    folders = [folder, *([folder / "edits"] if not (folder / "edits").is_symlink() else [])]
    found = {path.relative_to(folder).as_posix() for place in folders if place.is_dir() for path in place.iterdir()}
    return sorted({name for name in found if STRAY.fullmatch(name)} - set(named_files(project.ledger)))


@dataclass(frozen=True)
class UnusedFile:
    """A file that can be removed: its size in bytes, why, and the `edits` whose rows name it."""

    name: str
    size: int
    why: str
    edits: tuple[int, ...] = ()


def find_unused_files(project: Project) -> list[UnusedFile]:
    """Files of reverted edits, which cannot become active again, and files that scen wrote but no row names.

    Files of superseded edits are used: a revert of the newer edit makes these edits active again. Call inside
    `project.writing()` if the files are then removed.

    Raises:
        DamageFound: The ledger is damaged. It must not decide what is removed.
    """
    if problems := ledger_problems(project):
        raise DamageFound(f"no file is removed because the ledger is damaged: {problems[0].what}", hint=VERIFY_HINT)
    edits_of: dict[str, list[Edit]] = {}
    for edit in project.ledger.edits():
        if edit.file:
            edits_of.setdefault(project.files.name(edit), []).append(edit)
    stray = [(name, (project.folder / name).lstat().st_size) for name in stray_files(project)]
    return [
        UnusedFile(name, edits[0].size or 0, f"of edit {edits[0].id}, reverted", tuple(edit.id for edit in edits))
        for name, edits in edits_of.items()
        if all(edit.state == "reverted" for edit in edits)
    ] + [UnusedFile(name, size, "belongs to nothing") for name, size in stray]


def remove_unused_files(project: Project, unused: list[UnusedFile]) -> None:
    """Remove files. Call inside `project.writing()`.

    The edits keep their rows and the sha256 of their files. The rows are changed first, in one transaction: a file that
    a crash leaves is then a stray file.
    """
    project.check_writing()
    with project.ledger.db.atomic():
        for edit_id in (edit_id for file in unused for edit_id in file.edits):
            with project.ledger.change("gc", edit_id, file=None, size=None):
                project.ledger.db["edits"].update(edit_id, {"file": None, "size": None})
    for file in unused:
        disk.remove(project.folder / file.name)
