"""`scen status`, `scen log`, `scen show`: what the ledger says."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scen_cli.cli.loaders import HERE, Dir, open_project
from scen_cli.cli.output import Json, Output, Quiet, counted, table
from scen_cli.errors import DamageFound, UsageError

if TYPE_CHECKING:
    from scen_cli.project.ledger import Ledger
    from scen_cli.project.ledger_rows import Edit


def status(dir: Dir = HERE, as_json: Json = False, quiet: Quiet = False) -> None:
    """The project's base and recipe, and every edit with its state.

    Example: scen status
    """
    from scen_cli.project.method_state import state_setting

    project = open_project(dir)
    edits = project.ledger.edits()
    settings, theta = project.settings, project.ledger.theta()
    states = {
        state: sum(edit.state == state for edit in edits) for state in ("active", "superseded", "reverted", "failed")
    }
    state = state_setting(project.ledger)
    size = sum(edit.size or 0 for edit in edits) + (int(state["size"]) if state else 0)
    how = f"{settings['recipe']['name']}, theta {theta}"
    head = [
        ("base", settings["model"]),
        ("layer", settings["layer"]),
        ("method", project.method) if project.method else ("recipe", how),
        ("edits", ", ".join(f"{count} {state}" for state, count in states.items() if count) or "none yet"),
        ("on disk", f"{size / 1e6:.1f} MB of edits"),
    ]
    rows = [(edit.id, edit.state, edit.prompt, edit.target) for edit in edits]
    data = {
        "model": settings["model"],
        "layer": settings["layer"],
        "recipe": settings["recipe"],
        "method": project.method or "scen",
        "theta": theta,
        "states": states,
        "bytes": size,
        "edits": [{"id": e.id, "state": e.state, "prompt": e.prompt, "target": e.target} for e in edits],
    }
    shown = [table(("", ""), head)]
    if rows:
        shown.append(table(("edit#", "state", "prompt", "target"), rows))
    Output(as_json, quiet).result(data, *shown)


def log(
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no entry was changed, removed or moved. Exit code 12 if so.")
    ] = False,
    head: Annotated[
        str | None, typer.Option(help="With --verify: the newest hash as you know it from before must be in the log.")
    ] = None,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Everything that was done to the project, oldest first: what, when, by whom.

    With `--json` every edit stands with its record: `scen log --json | scen
    edit - --dir NEW` makes the same edits in another project.

    Example: scen log --verify
    """
    out = Output(as_json, quiet)
    ledger = open_project(dir).ledger
    if verify or head is not None:
        _verify_log(ledger, head, out)
        return
    events, edits = ledger.events(), {edit.id: edit for edit in ledger.edits()}
    rows = []
    for event in events:
        edit, detail = edits.get(event["edit"]), event["detail"]
        about = f"{edit.prompt} -> {edit.target}" if edit else detail.get("suite") or detail.get("model")
        reason = f" ({edit.reason})" if edit and edit.reason else ""
        who = detail.get("author", "")
        rows.append((event["id"], event["created"], who, event["kind"], event["edit"], f"{about or ''}{reason}"))
    data = [_with_record(event, edits) for event in events]
    out.result(data, table(("#", "when (UTC)", "who", "what", "edit#", ""), rows))


def _with_record(event: dict[str, Any], edits: dict[int, Edit]) -> dict[str, Any]:
    """An event as it goes out; that of an edit with all it takes to make the edit again."""
    edit = edits.get(event["edit"])
    if edit is None or event["kind"] not in ("edit", "edit-failed"):
        return event
    record: dict[str, Any] = {"prompt": edit.prompt, "target": edit.target, "subject": edit.subject}
    record |= {"rephrases": edit.rephrases, "train_rephrases": edit.train_rephrases}
    note = edit.reason if edit.state != "failed" and edit.reason else None
    return {**event, "record": {name: value for name, value in record.items() if value}, "note": note}


def _verify_log(ledger: Ledger, head: str | None, out: Output) -> None:
    from scen_cli.project.ledger_check import log_problems

    problems = log_problems(ledger)
    hashes = {event["hash"] for event in ledger.events()} if not problems else set()
    if head is not None and not problems:
        if len(head) < 8:
            raise UsageError(
                f"`--head {head}` is too short to tell a hash by", hint="`scen log --verify` prints it whole"
            )
        if not any(one.startswith(head) for one in hashes):
            problems = [f"no entry has the hash {head}: the log is not the one that you know"]
    newest = ledger.head()
    whole = [f"{len(hashes)} entries, each follows from the one before it; newest hash {newest}"]
    out.result({"entries": len(hashes), "head": newest, "problems": problems}, *(problems or whole))
    if problems:
        raise DamageFound(
            counted(len(problems), "problem") + " found in the log", hint="restore the project from a backup"
        )


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
    made = project.ledger.provenance(edit_id)
    data = {**asdict(edit), "supersedes": project.ledger.edits_superseded_by(edit_id), **made}
    told = {name: value for name, value in data.items() if name not in ("subject_forms", "index_sha256")}
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
