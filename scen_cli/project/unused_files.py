"""`scen gc`: files that nothing needs any more."""

from __future__ import annotations

from dataclasses import dataclass

from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.project import disk
from scen_cli.project.check import ledger_problems, strays
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.project import Project


@dataclass(frozen=True)
class UnusedFile:
    """A file that can go, its bytes and why; `edits`: whose rows name it."""

    name: str
    size: int
    why: str
    edits: tuple[int, ...] = ()


def garbage(project: Project) -> list[UnusedFile]:
    """Files of edits that were taken back, for there is no way to call them again (those of superseded edits come back
    if the edit that took their place is reverted), and files of scen's that no row names. Call inside
    `project.writing()` if they are to be removed.

    Raises `DamageFound` if the ledger is: what it says must not decide what goes.
    """
    if problems := ledger_problems(project):
        raise DamageFound(f"nothing is removed by a damaged ledger: {problems[0].what}", hint=VERIFY_HINT)
    using: dict[str, list[Edit]] = {}
    for edit in project.ledger.edits():
        if edit.file:
            using.setdefault(project.files.name(edit), []).append(edit)
    found = []
    for name, users in using.items():
        if all(edit.state == "reverted" for edit in users):
            ids = tuple(edit.id for edit in users)
            found.append(UnusedFile(name, users[0].size or 0, f"of edit {ids[0]}, reverted", ids))
    for name in strays(project):
        found.append(UnusedFile(name, (project.folder / name).lstat().st_size, "belongs to nothing"))
    return found


def collect(project: Project, found: list[UnusedFile]) -> None:
    """Remove garbage. The ledger first forgets the files, in one transaction: what a crash leaves then is stray. Edits
    keep their rows, with the sha256 that their files had. Call inside `project.writing()`."""
    project.check_writing()
    with project.ledger.db.atomic():
        for edit_id in [edit_id for one in found for edit_id in one.edits]:
            with project.ledger.change("gc", edit_id, file=None, size=None):
                project.ledger.db["edits"].update(edit_id, {"file": None, "size": None})
    for one in found:
        disk.remove(project.folder / one.name)
