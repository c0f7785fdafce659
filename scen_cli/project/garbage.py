"""`scen gc`: files that nothing needs any more."""

from __future__ import annotations

from dataclasses import dataclass

from scen_cli.project import disk
from scen_cli.project.check import strays
from scen_cli.project.guard import guard_setting
from scen_cli.project.project import Project
from scen_cli.project.rows import Edit


@dataclass(frozen=True)
class Garbage:
    """A file that can go, its bytes and why; `edits`: whose rows name it."""

    name: str
    size: int
    why: str
    edits: tuple[int, ...] = ()


def garbage(project: Project) -> list[Garbage]:
    """Files of edits that were taken back, for there is no way to call them again (those of superseded edits come back
    if the edit that took their place is reverted), and files that no row names. Call inside `project.writing()` if
    they are to be removed."""
    edits = project.ledger.edits()
    using: dict[str, list[Edit]] = {}
    for edit in edits:
        if edit.file:
            using.setdefault(edit.file, []).append(edit)
    gone = {name: users for name, users in using.items() if all(edit.state == "reverted" for edit in users)}
    found = []
    for users in gone.values():
        ids = tuple(edit.id for edit in users)
        found.append(Garbage(project.files.name(users[0]), users[0].size or 0, f"of edit {ids[0]}, reverted", ids))
    known = {*using, str((guard_setting(project.ledger) or {}).get("file"))}
    for name in strays(project, known):
        found.append(Garbage(name, (project.folder / name).lstat().st_size, "belongs to nothing"))
    return found


def collect(project: Project, found: list[Garbage]) -> None:
    """Remove garbage. The ledger first forgets the files, in one transaction: what a crash leaves then is stray. Edits
    keep their rows, with the sha256 that their files had. Call inside `project.writing()`."""
    with project.ledger.db.atomic():
        for edit_id in [edit_id for one in found for edit_id in one.edits]:
            with project.ledger.change("gc", edit_id, file=None, size=None):
                project.ledger.db["edits"].update(edit_id, {"file": None, "size": None})
    for one in found:
        disk.remove(project.folder / one.name)
