"""`scen status`, `scen log`, `scen show`: what the ledger says."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from scen_cli.cli.opening import HERE, Dir, open_project
from scen_cli.cli.output import Json, Output, Quiet, table


def status(dir: Dir = HERE, as_json: Json = False, quiet: Quiet = False) -> None:
    """The project's base and recipe, and every edit with its state.

    Example: scen status
    """
    project = open_project(dir)
    edits = project.ledger.edits()
    settings, theta = project.settings, project.ledger.theta()
    states = {
        state: sum(edit.state == state for edit in edits) for state in ("active", "superseded", "reverted", "failed")
    }
    size = sum(edit.size or 0 for edit in edits)
    head = [
        ("base", settings["model"]),
        ("layer", settings["layer"]),
        ("recipe", f"{settings['recipe']['name']}, theta {theta}"),
        ("edits", ", ".join(f"{count} {state}" for state, count in states.items() if count) or "none yet"),
        ("on disk", f"{size / 1e6:.1f} MB of edits"),
    ]
    rows = [(edit.id, edit.state, edit.prompt, edit.target) for edit in edits]
    data = {
        "model": settings["model"],
        "layer": settings["layer"],
        "recipe": settings["recipe"],
        "theta": theta,
        "states": states,
        "bytes": size,
        "edits": [{"id": e.id, "state": e.state, "prompt": e.prompt, "target": e.target} for e in edits],
    }
    shown = [table(("", ""), head)]
    if rows:
        shown.append(table(("edit#", "state", "prompt", "target"), rows))
    Output(as_json, quiet).result(data, *shown)


def log(dir: Dir = HERE, as_json: Json = False, quiet: Quiet = False) -> None:
    """Everything that was done to the project, oldest first.

    Example: scen log --json
    """
    ledger = open_project(dir).ledger
    events = [{**event, "detail": json.loads(event["detail"])} for event in ledger.events()]
    edits = {edit.id: edit for edit in ledger.edits()}
    rows = []
    for event in events:
        edit = edits.get(event["edit"])
        about = (
            f"{edit.prompt} -> {edit.target}" if edit else event["detail"].get("suite") or event["detail"].get("model")
        )
        reason = f" ({edit.reason})" if edit and edit.reason else ""
        rows.append((event["id"], event["created"], event["kind"], event["edit"], f"{about or ''}{reason}"))
    Output(as_json, quiet).result(events, table(("#", "when (UTC)", "what", "edit#", ""), rows))


def show(
    edit_id: Annotated[int, typer.Argument(metavar="ID", help="The edit's number, as `scen status` shows it.")],
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """All that is recorded of one edit; `--json` has the loss of every step.

    Example: scen show 3
    """
    project = open_project(dir)
    edit = project.find(edit_id)
    data = {**asdict(edit), "supersedes": project.ledger.superseded_by(edit_id)}
    told = {name: value for name, value in data.items() if name != "subject_forms"}  # token ids tell a reader nothing
    rows = [(name, _plain(name, value)) for name, value in told.items() if value not in (None, (), [])]
    Output(as_json, quiet).result(data, table(("", ""), rows))


def _plain(name: str, value: Any) -> str:
    if name.endswith("losses"):
        return f"{value[0]:.4f} to {value[-1]:.4f} in {len(value)} steps"
    if name == "rank":
        return str(value or "none: a full expert")
    if isinstance(value, float):
        return f"{value:.4f}"
    if name == "size":
        return f"{value} bytes"
    return "\n".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
