"""`scen backup`, `scen restore` and `scen gc`: a project in one file, and what it no longer needs."""

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
    """Write the project, as it is at one moment, to one file. Others may go on editing meanwhile.

    Every file is checked on the way: a damaged project makes no backup.

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
    """Make the project that a backup holds, in a folder that has none.

    Every sum is checked before the project appears.

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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    author: Author = None,
    wait: Wait = 0,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove files that nothing needs: those of reverted edits, and those that a killed process left.

    Records stay. Files of superseded edits stay too: these are active again
    once the edit that took their place is reverted.

    Example: scen gc --dry-run
    """
    from scen_cli.project.unused_files import collect, garbage

    project = open_project(dir, author, wait)
    if dry_run:
        found = garbage(project)
    else:
        with project.writing():
            found = garbage(project)
            collect(project, found)
    size = sum(one.size for one in found)
    done = "would go" if dry_run else "removed"
    rows = [(one.name, f"{one.size:,}", one.why) for one in found]
    Output(as_json, quiet).result(
        {"removed": not dry_run, "bytes": size, "files": [vars(one) for one in found]},
        *([table(("file", "bytes#", ""), rows)] if rows else []),
        f"{len(found)} files, {size:,} bytes: {done}" if found else "nothing to remove",
    )
