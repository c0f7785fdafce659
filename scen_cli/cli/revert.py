"""`scen revert`: take one edit back."""

from __future__ import annotations

from typing import Annotated

import typer

from scen_cli.cli.opening import HERE, Author, Dir, Wait, open_project
from scen_cli.cli.output import Json, Output, Quiet


def revert(
    edit_ids: Annotated[list[int], typer.Argument(metavar="ID...", help="Numbers, as `scen status` shows them.")],
    author: Author = None,
    wait: Wait = 0,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take edits back, as if they had never been made: theta is what it would be without them.

    An edit that one had superseded is in force again. Records and files are kept.

    Example: scen revert 3
    """
    from scen_cli.reverting import revert as take_back

    out = Output(as_json, quiet)
    project = open_project(dir, author, wait)
    with project.writing():
        theta, ids = project.ledger.theta(), list(dict.fromkeys(edit_ids))
        older = {edit: project.ledger.superseded_by(edit) for edit in ids}
        edits = take_back(project, *ids)
        after = project.ledger.theta()
    in_force = len(project.ledger.prompts_in_force())
    lines, reverted = [], []
    for edit in edits:
        back = [one for one in older[edit.id] if project.find(one).state == "active"]
        reverted.append({"edit": edit.id, "state": edit.state, "in_force_again": back})
        again = f"; edit {', '.join(map(str, back))}, which it had superseded, is in force again" if back else ""
        lines.append(f"edit {edit.id} reverted: {edit.prompt} -> {edit.target}; {in_force} edits in force{again}")
    if note := project.ledger.changes()[-1]["detail"].get("note"):
        out.warn(note)
    if after != theta:
        lines.append(f"theta is {after:.4f} (it was {theta:.4f})")
    out.result({"reverted": reverted, "in_force": in_force, "theta": after}, *lines)
