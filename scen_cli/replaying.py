"""A project's log made into edits again: every edit, in order, and every revert and theta between them.

Where base, layer, recipe, seed and guard are those of the log, so are the results, to the bit on the same machine:
what an edit comes to depends on those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from scen_cli.data.logs import LogEvent
from scen_cli.edit_run import Outcome, outcome_of
from scen_cli.editor import Editor
from scen_cli.errors import UsageError
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
    """Do what a log tells; yields what became of each edit. Call inside `project.writing()`.

    Edits of the log that are in force already are not made again. Raises `UsageError` for a log that takes back an
    edit it never made.
    """
    new_id: dict[int, int] = {}  # of each edit of the log
    for (kind, _), group in groupby(events, key=_together):
        some = list(group)
        if kind in ("edit", "edit-failed"):
            made = _edit(editor, some, new_id)
            ids = zip(some, made, strict=True)
            new_id.update((event.edit, outcome.edit) for event, outcome in ids if event.edit and outcome.edit)
            yield made
        elif kind == "revert":
            revert(editor.project, *[_known(new_id, event, event.edit) for event in some])
        elif kind == "calibrate":
            told = some[0].detail
            threshold = told.get("threshold") or {name: told[name] for name in ("theta", "chosen_by")} | {"created": ""}
            editor.project.set_threshold(Threshold(**threshold))


def _together(event: LogEvent) -> tuple[str, object]:
    """What is one thing of several entries: edits that share an expert, and edits that were taken back at once."""
    if event.kind == "edit":
        return "edit", event.expert
    together = event.detail.get("together")
    return event.kind, tuple(together) if together else event.where.line


def _edit(editor: Editor, events: Sequence[LogEvent], new_id: dict[int, int]) -> list[Outcome]:
    records = [(event.record, event.where) for event in events if event.record is not None]
    there = {record.prompt: editor.project.ledger.find_same(record.prompt, record.target) for record, _ in records}
    known = [next((edit for edit in there[record.prompt] if edit.state == "active"), None) for record, _ in records]
    if all(known):
        return [
            Outcome(str(where), "skipped", edit.id, f"already edit {edit.id}")
            for (_record, where), edit in zip(records, known, strict=True)
            if edit
        ]
    active = editor.project.ledger.experts_in_force()
    superseding = [
        tuple(sorted({new_id.get(older, 0) for older in event.detail.get("supersedes", [])} & set(active)))
        for event in events
    ]
    try:
        edits = editor.edit_together(records, superseding)
    except UsageError as error:
        return [Outcome(str(where), "failed", reason=str(error)) for _record, where in records]
    return [outcome_of(editor, edit, where) for edit, (_record, where) in zip(edits, records, strict=True)]


def _known(new_id: dict[int, int], event: LogEvent, edit: int | None) -> int:
    if edit not in new_id:
        raise UsageError(f"{event.where}: takes back edit {edit}, which the log did not make")
    return new_id[edit]
