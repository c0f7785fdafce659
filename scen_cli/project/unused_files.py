"""`scen gc`: finds and removes files that nothing needs."""

from __future__ import annotations

from dataclasses import dataclass

from scen_cli.errors import VERIFY_HINT, DamageFound
from scen_cli.project import disk
from scen_cli.project.check import ledger_problems, stray_files
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.project import Project


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
    unused = []
    for name, edits in edits_of.items():
        if all(edit.state == "reverted" for edit in edits):
            ids = tuple(edit.id for edit in edits)
            unused.append(UnusedFile(name, edits[0].size or 0, f"of edit {ids[0]}, reverted", ids))
    for name in stray_files(project):
        unused.append(UnusedFile(name, (project.folder / name).lstat().st_size, "belongs to nothing"))
    return unused


def remove_unused_files(project: Project, unused: list[UnusedFile]) -> None:
    """Remove files. Call inside `project.writing()`.

    The edits keep their rows and the sha256 of their files. The rows are changed first, in one transaction: a file that
    a crash leaves is then a stray file.
    """
    project.check_writing()
    with project.ledger.db.atomic():
        for edit_id in [edit_id for file in unused for edit_id in file.edits]:
            with project.ledger.change("gc", edit_id, file=None, size=None):
                project.ledger.db["edits"].update(edit_id, {"file": None, "size": None})
    for file in unused:
        disk.remove(project.folder / file.name)
