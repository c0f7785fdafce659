"""A project's log made into edits again: every edit, in order, and every revert and theta between them.

Where base, layer, recipe, seed and guard are those of the log, so are the results, to the bit on the same machine:
what an edit comes to depends on those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from scen_cli.data.logs import LogEvent
from scen_cli.data.records import SourceLine
from scen_cli.edit_run import Outcome, outcome_of
from scen_cli.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.project.ledger import now
from scen_cli.project.rows import Threshold
from scen_cli.reverting import revert

SAME = ("weights_digest", "layer", "place", "template", "recipe", "seed", "dtype")


def differences(editor: Editor, events: Sequence[LogEvent]) -> list[str]:
    """What will make the results others than those of the log: settings that differ, and what is not done again."""
    said, settings = [], editor.project.settings
    for event in events:
        if event.kind == "init":
            told = {name: event.detail.get(name) for name in SAME if event.detail.get(name) != settings.get(name)}
            said += [f"`{name}` was {value!r}, here it is {settings.get(name)!r}" for name, value in told.items()]
    guards = [event.detail.get("rows") for event in events if event.kind == "guard"]
    mine = (settings.get("guard") or {}).get("rows")
    if guards and guards[-1] != mine:
        said.append("the guard's prompts are others: give `scen init --guard` the same file")
    if any(event.kind == "compress" for event in events):
        said.append("experts that were compressed are full ones again: `scen compress` follows")
    return said


def replay(editor: Editor, events: Sequence[LogEvent]) -> Iterator[list[Outcome]]:
    """Do what a log tells, from where an earlier run stopped; yields what became of each edit. Call inside
    `project.writing()`.

    Raises `UsageError` for a log that takes back an edit it never made.
    """
    log = f"log {events[0].hash[:16]}"  # the source of its edits: by it they are known again
    made = {edit.source_line: edit.id for edit in editor.project.ledger.edits() if edit.source == log}
    new_id: dict[int, int] = {}  # of each edit of the log
    for (kind, _), group in groupby(events, key=_together):
        some = list(group)
        behind = some[-1].where.line < max(made, default=0)
        if kind in ("edit", "edit-failed"):
            done = [_known_already(made[event.where.line], event) for event in some if event.where.line in made]
            outcomes = done if len(done) == len(some) else _edit(editor, some, log, new_id)
            ids = zip(some, outcomes, strict=True)
            new_id.update((event.edit, outcome.edit) for event, outcome in ids if event.edit and outcome.edit)
            yield outcomes
        elif kind == "revert" and not behind:
            _revert(editor, some, new_id)
        elif (
            kind == "calibrate" and not behind and (wanted := _threshold(some[0])) != editor.project.ledger.threshold()
        ):
            editor.project.set_threshold(wanted)


def _together(event: LogEvent) -> tuple[str, object]:
    """What is one thing of several entries: edits that share an expert, and edits that were taken back at once."""
    if event.kind == "edit":
        return "edit", event.expert
    together = event.detail.get("together")
    return event.kind, tuple(together) if together else event.where.line


def _known_already(edit: int, event: LogEvent) -> Outcome:
    return Outcome(str(event.where), "skipped", edit, f"already edit {edit}")


def _edit(editor: Editor, events: Sequence[LogEvent], log: str, new_id: dict[int, int]) -> list[Outcome]:
    records = [(event.record, SourceLine(log, event.where.line)) for event in events if event.record is not None]
    active = set(editor.project.ledger.experts_in_force())
    told = [event.detail.get("supersedes") or [] for event in events]
    superseding = [tuple(sorted({new_id.get(older, 0) for older in some} & active)) for some in told]
    try:
        edits = editor.edit_together(records, superseding)
    except UsageError as error:
        return [Outcome(str(where), "failed", reason=str(error)) for _record, where in records]
    return [outcome_of(editor, edit, where) for edit, (_record, where) in zip(edits, records, strict=True)]


def _revert(editor: Editor, events: Sequence[LogEvent], new_id: dict[int, int]) -> None:
    for event in events:
        if event.edit not in new_id:
            raise UsageError(f"{event.where}: takes back edit {event.edit}, which the log did not make")
    ids = [new_id[event.edit or 0] for event in events]
    if any(editor.project.find(edit).state != "reverted" for edit in ids):
        revert(editor.project, *ids)


def _threshold(event: LogEvent) -> Threshold:
    """A threshold as a log tells it. Raises `UsageError` for one that cannot be."""
    told = event.detail.get("threshold") or {"theta": event.detail.get("theta"), "chosen_by": "hand", "created": now()}
    try:
        return Threshold(**told)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{event.where}: holds no threshold") from error
