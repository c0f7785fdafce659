"""`scen backup`, `scen restore` and `scen gc`: a project in one file, and removing unused files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scen_cli.cli.loaders import HERE, Author, Dir, Wait, open_project
from scen_cli.cli.output import Json, Output, Quiet, table


def backup(
    file: Annotated[Path, typer.Argument(help="The archive to write; it must not exist.")],
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the project to one file, as it is at one moment. Other processes may continue to edit.

    Every file is checked: a damaged project makes no backup.

    Example: scen backup facts-2026-11.scen.zip
    """
    from scen_cli.project.archive import backup as write

    project = open_project(dir)
    files, size = write(project, file)
    Output(as_json, quiet).result(
        {"file": str(file), "files": files, "bytes": size}, f"{file}: {files} files, {size:,} bytes"
    )


def restore(
    file: Annotated[Path, typer.Argument(help="An archive that `scen backup` wrote.")],
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Restore the project of a backup, in a folder without a project.

    Every checksum is checked before the project appears.

    Example: scen restore facts-2026-11.scen.zip --dir facts
    """
    from scen_cli.project.archive import restore as read

    project = read(file, dir)
    edits = len(project.ledger.edits())
    active = len(project.ledger.active_prompts())
    Output(as_json, quiet).result(
        {"dir": str(dir), "edits": edits, "active": active, "head": project.ledger.head()},
        f"restored to `{dir}`: {edits} edits, {active} active",
    )


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files.")] = False,
    author: Author = None,
    wait: Wait = 0,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove unused files: those of reverted edits, and those that a killed process left.

    Records stay. Files of superseded edits stay too: such an edit becomes active again if the newer one is reverted.

    Example: scen gc --dry-run
    """
    from scen_cli.project.check import find_unused_files, remove_unused_files

    project = open_project(dir, author, wait)
    if dry_run:
        found = find_unused_files(project)
    else:
        with project.writing():
            found = find_unused_files(project)
            remove_unused_files(project, found)
    size = sum(file.size for file in found)
    done = "would be removed" if dry_run else "removed"
    rows = [(file.name, f"{file.size:,}", file.why) for file in found]
    Output(as_json, quiet).result(
        {"removed": not dry_run, "bytes": size, "files": [vars(file) for file in found]},
        *([table(("file", "bytes#", ""), rows)] if rows else []),
        f"{len(found)} files, {size:,} bytes: {done}" if found else "nothing to remove",
    )
