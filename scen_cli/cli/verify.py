"""`scen verify`: every file against the ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from scen_cli.cli.opening import HERE, Dir, open_project
from scen_cli.cli.output import Json, Output, Quiet
from scen_cli.errors import DamageFound


def verify(
    repair: Annotated[bool, typer.Option(help="Remove stray files and rebuild the merged neurons.")] = False,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check every file against the ledger, and the ledger against itself. Exit code 12 on damage.

    Example: scen verify --repair
    """
    from scen_cli.project import check

    out = Output(as_json, quiet)
    project = open_project(dir)
    done: list[str] = []
    if repair:
        with project.writing():
            done = check.repair(project)
    problems = check.verify(project)
    lines = [*done, *(f"{problem.where}: {problem.what}" for problem in problems)]
    edits = len(project.ledger.edits())
    data = {"edits": edits, "repaired": done, "problems": [vars(problem) for problem in problems]}
    out.result(data, *(lines or [f"{edits} edits: every file is as it was committed"]))
    if problems:
        hint = (
            "`scen verify --repair`"
            if all(p.stray or p.where == check.MERGED for p in problems)
            else "restore the file from a copy, or `scen revert` its edit"
        )
        raise DamageFound(f"{len(problems)} problems found", hint=hint)
