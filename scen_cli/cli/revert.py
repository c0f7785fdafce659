"""`scen revert`: take one edit back."""

from __future__ import annotations

from typing import Annotated

import typer

from scen_cli.cli.opening import HERE, Dir, open_project
from scen_cli.cli.output import Json, Output, Quiet


def revert(
    edit_id: Annotated[int, typer.Argument(metavar="ID", help="The edit's number, as `scen status` shows it.")],
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take an edit out of routing at once. Its record and file are kept.

    An older edit that it had superseded stays superseded: the base answers again.

    Example: scen revert 3
    """
    project = open_project(dir)
    with project.writing():
        edit = project.revert(edit_id)
    older = project.ledger.superseded_by(edit_id)
    stays = f"; edit {', '.join(map(str, older))}, which it superseded, stays so" if older else ""
    in_force = len(project.ledger.prompts_in_force())
    Output(as_json, quiet).result(
        {"edit": edit.id, "state": edit.state, "in_force": in_force},
        f"edit {edit.id} reverted: {edit.prompt} -> {edit.target}; {in_force} edits in force{stays}",
    )
