"""`scen verify`: every file against the ledger, and what can be put right."""

from __future__ import annotations

from dataclasses import dataclass

from scen_cli.errors import DamageFound
from scen_cli.project.guard import read_guard
from scen_cli.project.project import MERGED, Project
from scen_cli.project.store import read_tensors, sha256_of


@dataclass(frozen=True)
class Problem:
    """Something that disagrees with the ledger; `stray` files can be removed without loss."""

    where: str
    what: str
    stray: bool = False


def verify(project: Project) -> list[Problem]:
    """Compare the ledger with itself and with every file. An empty list means all is well."""
    problems = [Problem("ledger", text) for text in project.ledger.integrity_problems()]
    everything = project.ledger.edits()
    lost = [edit.id for edit in everything if edit.state == "active" and not edit.file]
    problems += [Problem("ledger", f"edit {edit_id} is in force but has no file") for edit_id in lost]
    edits = [edit for edit in everything if edit.file]
    for edit in [edit for edit in edits if edit.expert == edit.id]:
        path = project.folder / str(edit.file)
        if not path.is_file():
            problems.append(Problem(str(edit.file), f"file of edit {edit.id} is missing"))
        elif path.stat().st_size != edit.size or sha256_of(path) != edit.sha256:
            problems.append(Problem(str(edit.file), f"content of edit {edit.id} is not what was committed"))
    known = {edit.file for edit in edits}
    if "guard" in (settings := project.ledger.settings()):
        known.add(settings["guard"]["file"])
        try:
            read_guard(project.folder, project.ledger)
        except DamageFound as error:
            problems.append(Problem(settings["guard"]["file"], str(error)))
    elif project.ledger.guard():
        problems.append(Problem("ledger", "there are guard prompts, but their file is not named"))
        known |= {path.name for path in project.folder.glob("guard-*")}
    strays = (*(project.folder / "edits").glob("*"), *project.folder.glob("*.tmp"), *project.folder.glob("guard-*"))
    for path in sorted(strays):
        name = path.relative_to(project.folder).as_posix()
        if name not in known:
            problems.append(Problem(name, "belongs to no edit", stray=True))
    damaged = any(not problem.stray for problem in problems)
    return problems + _merged_problems(project, damaged)


def repair(project: Project) -> list[str]:
    """Remove stray files and rebuild the merged neurons; returns what was done. Needs the lock."""
    done = []
    for problem in verify(project):
        if problem.stray:
            (project.folder / problem.where).unlink()
            done.append(f"removed `{problem.where}`, which {problem.what}")
        elif problem.where == MERGED:
            project.merge()
            done.append(f"rebuilt `{MERGED}`")
    return done


def _merged_problems(project: Project, damaged: bool) -> list[Problem]:
    """Whether merged neurons that claim to be current are those of the files. (Asked only while the
    files are whole; a cache of other edits is merely old, and is not used.)"""
    if damaged or not (project.folder / MERGED).is_file():
        return []
    try:
        ids, neurons = read_tensors(project.folder, MERGED, ("edits", "neurons"))
    except DamageFound:
        return [Problem(MERGED, "cannot be read")]
    experts = sorted(set(project.ledger.experts_in_force().values()))
    if ids.tolist() != experts:
        return []
    same = bool((project.merged_files().neurons == neurons).all())
    return [] if same else [Problem(MERGED, "is not what the edit files give")]
