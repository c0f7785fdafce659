"""`scen revert`: take one edit back."""

from __future__ import annotations

from typing import Annotated

import typer

from scen_cli.cli.opening import HERE, Dir, open_project
from scen_cli.cli.output import Json, Output, Quiet


def revert(
    edit_ids: Annotated[list[int], typer.Argument(metavar="ID...", help="Numbers, as `scen status` shows them.")],
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take edits out of routing at once. Their records and files are kept.

    An older edit that it had superseded stays superseded: the base answers
    again.

    Example: scen revert 3
    """
    project = open_project(dir)
    with project.writing():
        edits = project.revert(*dict.fromkeys(edit_ids))
    in_force = len(project.ledger.prompts_in_force())
    lines = []
    for edit in edits:
        older = project.ledger.superseded_by(edit.id)
        stays = f"; edit {', '.join(map(str, older))}, which it superseded, stays so" if older else ""
        lines.append(f"edit {edit.id} reverted: {edit.prompt} -> {edit.target}; {in_force} edits in force{stays}")
    reverted = [{"edit": edit.id, "state": edit.state} for edit in edits]
    Output(as_json, quiet).result({"reverted": reverted, "in_force": in_force}, *lines)
