"""`scen revert`: revert edits."""

from __future__ import annotations

from typing import Annotated

import typer

from scen_cli.cli.loaders import HERE, Author, Device, Dir, Wait, load_editor, open_project
from scen_cli.cli.output import Json, Output, Quiet


def revert(
    edit_ids: Annotated[list[int], typer.Argument(metavar="ID...", help="Ids, as `scen status` shows them.")],
    device: Device = "auto",
    author: Author = None,
    wait: Wait = 0,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Revert edits, as if they had never been made: theta becomes what it would be without them.

    An edit that a reverted one had superseded becomes active again. Records and files stay. A project that edits by
    another method than SCEN learns all other edits again.

    Example: scen revert 3
    """
    from scen_cli.editing.revert_edits import revert_edits  # SCEN's edits need no base, and torch only for a guard

    out = Output(as_json, quiet)
    project = open_project(dir, author, wait)
    editor = load_editor(project, device, out) if project.method else None
    with project.writing():
        theta, ids = project.ledger.theta(), list(dict.fromkeys(edit_ids))
        superseded = {edit: project.ledger.edits_superseded_by(edit) for edit in ids}
        edits = editor.revert(*ids) if editor else revert_edits(project, *ids)
        new_theta = project.ledger.theta()
    active = len(project.ledger.active_prompts())
    lines, reverted = [], []
    for edit in edits:
        back = [older for older in superseded[edit.id] if project.find(older).state == "active"]
        reverted.append({"edit": edit.id, "state": edit.state, "reactivated": back})
        again = f"; edit {', '.join(map(str, back))}, which it had superseded, is active again" if back else ""
        lines.append(f"edit {edit.id} reverted: {edit.prompt} -> {edit.target}; {active} active edits{again}")
    if note := next(project.ledger.newest_changes())["detail"].get("note"):
        out.warn(note)
    if new_theta != theta:
        lines.append(f"theta is {new_theta:.4f} (it was {theta:.4f})")
    out.result({"reverted": reverted, "active": active, "theta": new_theta}, *lines)
