"""`scen status`, `scen log` and `scen show`: what the ledger records."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from scen_cli.cli.loaders import HERE, Dir, open_project
from scen_cli.cli.output import Json, Output, Quiet, counted, table
from scen_cli.errors import DamageFound, UsageError

if TYPE_CHECKING:
    from scen_cli.project.ledger import Ledger
    from scen_cli.project.ledger_rows import Edit


STATES = ("active", "superseded", "reverted", "failed")
LISTED = 100  # edits; a longer list takes seconds to print


def status(
    all_edits: Annotated[bool, typer.Option("--all", help=f"List all edits, not only the last {LISTED}.")] = False,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the project's base and recipe, and its edits with their states.

    Example: scen status
    """
    from scen_cli.project.method_state import state_setting

    project = open_project(dir)
    counts = project.ledger.state_counts()
    edits = project.ledger.edits() if all_edits else project.ledger.newest_edits(LISTED)
    settings, theta = project.settings, project.ledger.theta()
    states = {state: counts.get(state, 0) for state in STATES}
    method_file = state_setting(project.ledger)
    size = project.ledger.edit_bytes() + (int(method_file["size"]) if method_file else 0)
    recipe = f"{settings['recipe']['name']}, theta {theta}"
    choice = settings.get("layer_choice")
    head = [
        ("base", settings["model"]),
        ("layer", f"{settings['layer']}, chosen by a trial: {choice['reason']}" if choice else settings["layer"]),
        ("method", project.method) if project.method else ("recipe", recipe),
        ("edits", ", ".join(f"{count} {state}" for state, count in states.items() if count) or "none yet"),
        ("on disk", f"{size / 1e6:.1f} MB of edits"),
    ]
    rows = [(edit.id, edit.state, edit.prompt, edit.target) for edit in edits]
    data = {
        "model": settings["model"],
        "layer": settings["layer"],
        "layer_choice": choice,
        "recipe": settings["recipe"],
        "method": project.method or "scen",
        "theta": theta,
        "states": states,
        "bytes": size,
        "older_edits": sum(counts.values()) - len(edits),
        "edits": [{"id": e.id, "state": e.state, "prompt": e.prompt, "target": e.target} for e in edits],
    }
    shown: list[RenderableType] = [table(("", ""), head)]
    if rows:
        shown.append(table(("edit#", "state", "prompt", "target"), rows))
    if older := sum(counts.values()) - len(edits):
        shown.append(f"and {counted(older, 'older edit')}: `scen status --all` lists them")
    Output(as_json, quiet).result(data, *shown)


def log(
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check that no entry was changed, removed or moved. Exit code 12 if one was."),
    ] = False,
    head: Annotated[
        str | None,
        typer.Option(help="With --verify: a hash that the log must contain, from an earlier check."),
    ] = None,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show every change of the project, oldest first: what, when, by whom.

    `scen log --json | scen edit - --dir NEW` makes the same edits in another project.

    Example: scen log --verify
    """
    out = Output(as_json, quiet)
    ledger = open_project(dir).ledger
    if verify or head is not None:
        _verify_log(ledger, head, out)
        return
    events, edits = ledger.events(), {edit.id: edit for edit in ledger.edits()}
    rows = [
        (
            event["id"],
            event["created"],
            event["detail"].get("author", ""),
            event["kind"],
            event["edit"],
            _subject(event["detail"], edits.get(event["edit"])),
        )
        for event in events
    ]
    data = [_with_record(event, edits) for event in events]
    out.result(data, table(("#", "when (UTC)", "who", "what", "edit#", ""), rows))


def _subject(detail: dict[str, Any], edit: Edit | None) -> str:
    """What an event is about: its edit, suite or base."""
    if edit is None:
        return detail.get("suite") or detail.get("model") or ""
    return f"{edit.prompt} -> {edit.target}" + (f" ({edit.reason})" if edit.reason else "")


def _with_record(event: dict[str, Any], edits: dict[int, Edit]) -> dict[str, Any]:
    """An event; the event of an edit with the record, from which the edit can be made again."""
    edit = edits.get(event["edit"])
    if edit is None or event["kind"] not in ("edit", "edit-failed"):
        return event
    record: dict[str, Any] = {"prompt": edit.prompt, "target": edit.target, "subject": edit.subject}
    record |= {"rephrases": edit.rephrases, "train_rephrases": edit.train_rephrases}
    note = edit.reason if edit.state != "failed" and edit.reason else None
    return {**event, "record": {name: value for name, value in record.items() if value}, "note": note}


def _verify_log(ledger: Ledger, head: str | None, out: Output) -> None:
    from scen_cli.project.check import log_problems

    problems = log_problems(ledger)
    hashes = {event["hash"] for event in ledger.events()} if not problems else set()
    if head is not None and not problems:
        if len(head) < 8:
            raise UsageError(
                f"`--head {head}` is too short to identify a hash", hint="`scen log --verify` prints the whole hash"
            )
        if not any(known.startswith(head) for known in hashes):
            problems = [f"no entry has the hash {head}: this is another log, or it was rewritten"]
    newest = ledger.head()
    intact = [f"{len(hashes)} entries, each follows from the one before it; newest hash {newest}"]
    out.result({"entries": len(hashes), "head": newest, "problems": problems}, *(problems or intact))
    if problems:
        found = counted(len(problems), "problem") + " found in the log"
        raise DamageFound(found, hint="restore the project from a backup")


def show(
    edit_id: Annotated[int, typer.Argument(metavar="ID", help="The edit's number, as `scen status` shows it.")],
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show everything that is recorded about one edit; `--json` has the loss of every step.

    Example: scen show 3
    """
    project = open_project(dir)
    edit = project.find(edit_id)
    supersedes = project.ledger.edits_superseded_by(edit_id)
    data = {**asdict(edit), "supersedes": supersedes, **project.ledger.provenance(edit_id)}
    rows = [
        (name, _as_text(name, value))
        for name, value in data.items()
        if name not in ("subject_names", "index_sha256") and value not in (None, (), [])
    ]
    Output(as_json, quiet).result(data, table(("", ""), rows))


def _as_text(name: str, value: Any) -> str:
    if name.endswith("losses"):
        return f"{value[0]:.4f} to {value[-1]:.4f} in {len(value)} steps"
    if name == "rank":
        return str(value or "none: a full expert")
    if isinstance(value, float):
        return f"{value:.4f}"
    if name == "size":
        return f"{value} bytes"
    return "\n".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
