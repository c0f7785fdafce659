"""`scen verify` as far as files can tell: the ledger against itself and every file; and what can be put right."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from scen_cli.errors import DamageFound
from scen_cli.project import disk, tensor_files, w_merge
from scen_cli.project.edit_files import EDIT_FILE
from scen_cli.project.guard import GUARD_FILE, guard_setting, read_guard
from scen_cli.project.ledger import Ledger
from scen_cli.project.ledger_check import integrity_problems
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.lock import in_use
from scen_cli.project.method_state import STATE_FILE, read_state, state_setting
from scen_cli.project.project import Project
from scen_cli.project.seal import LEDGER, SEAL, rolled_back, seal, seal_problem

TRIES = 5
STRAY = re.compile(
    rf"(?:{EDIT_FILE.pattern}|{GUARD_FILE.pattern}|{STATE_FILE.pattern})(?:\.tmp)?|(?:{re.escape(tensor_files.MERGED)}|{re.escape(SEAL)})\.tmp"
    rf"|{re.escape(LEDGER)}\.\d+\.new(?:-journal)?|\.restoring-\w+"
)
LOW_RANK = {"lora_A", "lora_B"}
REFITTED = {"refitted", "refitted_of"}


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was committed: where, what, and of which edit. `--repair` removes a `stray` file,
    which no row names, and makes a `cache` or a `seal` anew; `damage` is for a backup to mend."""

    where: str
    what: str
    edit: int | None = None
    kind: Literal["damage", "stray", "cache", "seal"] = "damage"


def verify(project: Project, deep: bool = False) -> list[Problem]:
    """Compare the ledger with itself and with its files: that they are there and of their size; `deep`: every byte of
    them, and what their tensors hold. An empty list means all is well.

    While another process writes, what it has not finished yet (stray files, the cache, the seal) is no problem.
    """
    for _ in range(TRIES):
        head = project.ledger.head()
        busy = _others_write(project)
        found = _verify(project, deep)
        busy = busy or _others_write(project)
        if not found or project.ledger.head() == head:
            break  # else somebody else has changed the ledger meanwhile
    return [problem for problem in found if problem.kind == "damage" or not busy]


def _others_write(project: Project) -> bool:
    return not project.is_writing and in_use(project.folder)


def _verify(project: Project, deep: bool) -> list[Problem]:
    problems = ledger_problems(project)
    try:
        edits = project.ledger.edits()
        problems += [problem for edit in edits for problem in _edit_problems(project, edit, deep)]
        problems += _guard_problems(project, deep) + _state_problems(project, deep)
        problems += [Problem(name, "belongs to nothing", kind="stray") for name in strays(project)]
        if not any(problem.kind == "damage" for problem in problems):
            problems += _merged_problems(project, deep)
    except (DamageFound, sqlite3.DatabaseError) as error:  # of the ledger: what its rows name cannot be looked for
        problems.append(Problem(LEDGER, str(error)))
    if deep and (wrong := seal_problem(project.folder)):
        problems.append(Problem(SEAL, wrong, kind="seal"))
    return problems


def ledger_problems(project: Project) -> list[Problem]:
    """What is wrong with the ledger itself, as far as it, its log and its seal tell."""
    try:
        with project.ledger.reading():
            said = integrity_problems(project.ledger)
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise
        said = [f"cannot be read: {error}"]
    except DamageFound as error:
        said = [str(error)]
    if not said and rolled_back(project.folder, project.ledger):
        said = ["is not the ledger that was sealed, nor one that followed: an older copy? Files may be ahead of it"]
    return [Problem(LEDGER, text) for text in said]


def repair(project: Project, deep: bool = False) -> list[str]:
    """Remove stray files, and make the merged neurons and the seal anew; returns what was done. Call inside
    `project.writing()`.

    Where anything is damaged no file is removed, for it may be the one that is missed; a damaged ledger is not sealed.
    """
    project.check_writing()
    done = []
    found = verify(project, deep)
    whole = not any(problem.kind == "damage" for problem in found)
    for problem in found:
        if problem.kind == "stray" and whole:
            disk.remove(project.folder / problem.where)
            done.append(f"removed `{problem.where}`, which {problem.what}")
        elif problem.kind == "cache" and whole:
            project.merge()
            done.append(f"rebuilt `{problem.where}`")
        elif problem.kind == "seal" and not any(one.where == LEDGER for one in found):
            (project.folder / SEAL).unlink(missing_ok=True)
            seal(project.folder, project.ledger)
            done.append(f"sealed `{LEDGER}` again: the log bears out every row")
    return done


def named_files(ledger: Ledger) -> dict[str, str | None]:
    """Every file that a ledger names, with the sha256 that it is to have."""
    named = {edit.file: edit.sha256 for edit in ledger.edits() if edit.file}
    others = (guard_setting(ledger), state_setting(ledger))
    return {**named, **{str(one["file"]): str(one["sha256"]) for one in others if one}}


def strays(project: Project) -> list[str]:
    """Files that only scen makes and that no row names: what a killed process leaves behind. Other files in the folder
    are the user's."""
    folder = project.folder
    places = [folder, *([folder / "edits"] if not (folder / "edits").is_symlink() else [])]
    found = {path.relative_to(folder).as_posix() for place in places if place.is_dir() for path in place.iterdir()}
    return sorted({name for name in found if STRAY.fullmatch(name)} - set(named_files(project.ledger)))


def _edit_problems(project: Project, edit: Edit, deep: bool) -> Iterator[Problem]:
    if edit.file is None:
        if edit.state in ("active", "superseded") and project.method is None:
            yield Problem(LEDGER, f"edit {edit.id} is {edit.state} but has no file", edit.id)
        return
    if edit.expert != edit.id:  # its file is the first's of those that share it
        return
    try:
        path = tensor_files.regular(project.folder, project.files.name(edit))
    except DamageFound as error:
        yield Problem(edit.file, f"{error} (edit {edit.id})", edit.id)
        return
    if path.stat().st_size != edit.size:
        yield Problem(edit.file, f"is {path.stat().st_size} bytes; edit {edit.id} was {edit.size}", edit.id)
    elif deep and _differs(project, edit):
        yield Problem(edit.file, f"content of edit {edit.id} is not what was committed", edit.id)
    elif deep and (wrong := _wrong_tensors(project, edit, path)):
        yield Problem(edit.file, f"edit {edit.id}: {wrong}", edit.id)


def _differs(project: Project, edit: Edit) -> bool:
    try:
        return tensor_files.checked_sum(project.folder, project.files.name(edit)) != edit.sha256
    except DamageFound:  # it cannot be read
        return True


def _wrong_tensors(project: Project, edit: Edit, path: Path) -> str:
    """What an edit's tensors are that they must not be, although they are what was committed."""
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        return f"cannot be read: {error}"
    if (said := tensor_files.metadata(project.folder, str(edit.file))) != {
        "format": tensor_files.FORMAT,
        "edit": edit.expert,
    }:
        return f"its file says that it is {said}"
    experts = LOW_RANK if edit.rank else {"expert"}
    names = set(arrays)
    if not {"neuron", "key", *experts} <= names <= {"neuron", "key", *experts, *REFITTED}:
        return f"holds {', '.join(sorted(names))}"
    width = project.settings["ffn_width"]
    wanted = {"neuron": (width,), "key": (*arrays["key"].shape[:-1], width)}
    if edit.rank:
        wanted |= {"lora_A": (edit.rank, arrays["lora_A"].shape[-1]), "lora_B": (arrays["lora_B"].shape[0], edit.rank)}
    for name, array in arrays.items():
        if array.dtype != tensor_files.DTYPES.get(name, np.float32) or array.shape != wanted.get(name, array.shape):
            return f"`{name}` is {array.dtype} {list(array.shape)}"
        if not np.isfinite(array).all():
            return f"`{name}` is not finite"
    differs = tensor_files.digest_of_index(arrays) != edit.index_sha256
    return "its neuron or key is not what was committed" if differs else ""


def _guard_problems(project: Project, deep: bool) -> list[Problem]:
    kept = guard_setting(project.ledger)
    if kept is None:
        lost = bool(project.ledger.guard())
        return [Problem(LEDGER, "there are guard prompts, but their file is not named")] if lost else []
    name = str(kept["file"])
    try:
        if (size := tensor_files.regular(project.folder, name).stat().st_size) != kept["size"]:
            return [Problem(name, f"is {size} bytes; the guard was {kept['size']}")]
        guard = read_guard(project.folder, project.ledger) if deep else None
    except DamageFound as error:
        return [Problem(name, str(error))]
    wrong = [key for key, array in vars(guard.tensors).items() if not np.isfinite(array).all()] if guard else []
    return [Problem(name, f"`{key}` is not finite") for key in wrong]


def _state_problems(project: Project, deep: bool) -> list[Problem]:
    """What is wrong with the state of a method other than SCEN."""
    kept = state_setting(project.ledger)
    if kept is None:
        return [Problem(LEDGER, "the method's state is not named")] if project.method else []
    name = str(kept["file"])
    try:
        if (size := tensor_files.regular(project.folder, name).stat().st_size) != kept["size"]:
            return [Problem(name, f"is {size} bytes; the state was {kept['size']}")]
        arrays = read_state(project.folder, project.ledger) if deep else None
    except DamageFound as error:
        return [Problem(name, str(error))]
    floats = {key: one for key, one in (arrays or {}).items() if one.dtype.kind == "f"}
    return [Problem(name, f"`{key}` is not finite") for key, one in floats.items() if not np.isfinite(one).all()]


def _file_of(project: Project, expert: int) -> str:
    edit = project.ledger.edit(expert)
    return (edit.file if edit else None) or LEDGER


def _merged_problems(project: Project, deep: bool) -> list[Problem]:
    """Whether merged neurons that claim to be current are those of the files. (Asked only while the
    files are whole; a cache of other edits is merely old, and is not used.)"""
    if not os.path.lexists(project.folder / tensor_files.MERGED):
        return []
    if not (project.folder / tensor_files.MERGED).is_file():
        return [Problem(tensor_files.MERGED, "is no file")]
    try:
        ids, _neurons = tensor_files.read_merged(project.folder)
    except DamageFound as error:
        return [Problem(tensor_files.MERGED, str(error), kind="cache")]
    if ids != sorted(set(project.ledger.active_experts().values())) and not deep:
        return []
    found = w_merge.w_merge_of_files(project.ledger, project.files)
    if found.damaged:
        return [Problem(_file_of(project, expert), what, expert) for expert, what in found.damaged.items()]
    content = tensor_files.merged_content(found.experts, found.neurons)
    same = (project.folder / tensor_files.MERGED).read_bytes() == content
    return [] if same else [Problem(tensor_files.MERGED, "is not what the edit files give", kind="cache")]
