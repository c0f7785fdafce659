"""`scen revert`: take one edit back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scen_cli.cli.loaders import HERE, Author, Device, Dir, Wait, open_method_editor, open_project
from scen_cli.cli.output import Json, Output, Quiet

if TYPE_CHECKING:
    from scen_cli.baselines.method_editor import MethodEditor


def revert(
    edit_ids: Annotated[list[int], typer.Argument(metavar="ID...", help="Numbers, as `scen status` shows them.")],
    device: Device = "auto",
    author: Author = None,
    wait: Wait = 0,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take edits back, as if they had never been made: theta is what it would be without them.

    An edit that one had superseded is active again. Records and files are
    kept. A project that edits by another method than SCEN learns all other
    edits anew.

    Example: scen revert 3
    """
    from scen_cli.editing.revert_edits import revert_edits as take_back  # no torch: SCEN's need no base

    out = Output(as_json, quiet)
    project = open_project(dir, author, wait)
    if project.method:
        take_back = _by_method(open_method_editor(project, device, out))
    with project.writing():
        theta, ids = project.ledger.theta(), list(dict.fromkeys(edit_ids))
        older = {edit: project.ledger.edits_superseded_by(edit) for edit in ids}
        edits = take_back(project, *ids)
        after = project.ledger.theta()
    active = len(project.ledger.active_prompts())
    lines, reverted = [], []
    for edit in edits:
        back = [one for one in older[edit.id] if project.find(one).state == "active"]
        reverted.append({"edit": edit.id, "state": edit.state, "in_force_again": back})
        again = f"; edit {', '.join(map(str, back))}, which it had superseded, is active again" if back else ""
        lines.append(f"edit {edit.id} reverted: {edit.prompt} -> {edit.target}; {active} active edits{again}")
    if note := project.ledger.changes()[-1]["detail"].get("note"):
        out.warn(note)
    if after != theta and not project.method:
        lines.append(f"theta is {after:.4f} (it was {theta:.4f})")
    out.result({"reverted": reverted, "active": active, "theta": after}, *lines)


def _by_method(editor: MethodEditor) -> Callable[..., Any]:
    """How edits of another method are taken back."""
    return lambda _project, *edit_ids: editor.revert(*edit_ids)
