"""A project's log made into edits again: every edit, in order, and every revert and theta between them.

Where base, layer, recipe, seed and guard are those of the log, so are the results, to the bit on the same machine:
what an edit comes to depends on those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from scen_cli.data.log_events import LogEvent
from scen_cli.editing.edit_run import Outcome, outcome_of
from scen_cli.editing.editor import Editor
from scen_cli.editing.revert_edits import revert_edits
from scen_cli.errors import UsageError
from scen_cli.project.ledger_rows import Threshold

SAME = ("weights_digest", "layer", "target_module", "template", "recipe", "seed", "dtype", "quantize")


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

    Every event that this makes tells which entry of the log it follows. Raises `UsageError` for the project's own log,
    and for one that takes back an edit it never made.
    """
    ledger, log = editor.project.ledger, events[0].hash
    if ledger.has_event(log):
        raise UsageError("this is the project's own log", hint="`--dir NEW` makes the same edits in another project")
    done = _done(editor, log)
    last = max((place for place, event in enumerate(events) if event.hash in done), default=-1)
    ahead = {event.hash for event in events[last + 1 :]}
    new_id: dict[int, int | None] = {}  # of each edit of the log; None of one that could not be made
    try:
        for (kind, _), group in groupby(events, key=_together):
            some = list(group)
            entry = some[-1].hash
            ledger.noted = {"replayed": [log, entry]}
            if kind == "edit":
                outcomes = _skipped(some, done[entry]) if entry in done else _train(editor, some, new_id)
                new_id.update({event.edit or 0: outcome.edit for event, outcome in zip(some, outcomes, strict=True)})
                yield outcomes
            elif kind == "revert" and entry in ahead:
                _revert(editor, some, new_id)
            elif kind == "calibrate" and entry in ahead:
                editor.project.set_threshold(_threshold(some[0]))
    finally:
        ledger.noted = {}


def _done(editor: Editor, log: str) -> dict[str, list[int]]:
    """What an earlier run did of a log: by the hash of an entry, the edits that it made or took back."""
    found: dict[str, list[int]] = {}
    for event in editor.project.ledger.changes():
        replayed = event["detail"].get("replayed")
        if replayed and replayed[0] == log:
            found.setdefault(replayed[1], []).append(event["edit"])
    return found


def _together(event: LogEvent) -> tuple[str, object]:
    """What is one thing of several entries: edits trained together, and edits taken back at once."""
    kind = "edit" if event.kind == "edit-failed" else event.kind
    together = event.detail.get("together")
    return kind, tuple(together) if isinstance(together, list) else event.where.line


def _skipped(events: Sequence[LogEvent], edits: Sequence[int]) -> list[Outcome]:
    """Edits that an earlier run made. Raises `UsageError` if it made another number of them: the log was changed."""
    if len(events) != len(edits):
        raise UsageError(f"{events[0].where}: an earlier run made {len(edits)} edits of this, not {len(events)}")
    pairs = zip(events, edits, strict=True)
    return [Outcome(str(event.where), "skipped", edit, f"already edit {edit}") for event, edit in pairs]


def _train(editor: Editor, events: Sequence[LogEvent], new_id: Mapping[int, int | None]) -> list[Outcome]:
    records = [(event.record, event.where) for event in events if event.record is not None]
    active = set(editor.project.ledger.active_experts())
    told = [event.detail.get("supersedes") or [] for event in events]
    superseding = [tuple(sorted({new_id.get(older) or 0 for older in some} & active)) for some in told]
    try:
        edits = editor.edit_together(records, superseding, next((event.note for event in events if event.note), ""))
    except UsageError as error:
        return [Outcome(str(where), "failed", reason=str(error)) for _record, where in records]
    return [outcome_of(editor, edit, where) for edit, (_record, where) in zip(edits, records, strict=True)]


def _revert(editor: Editor, events: Sequence[LogEvent], new_id: Mapping[int, int | None]) -> None:
    """Take back what the log took back, as far as it could be made here."""
    for event in events:
        if event.edit not in new_id:
            raise UsageError(f"{event.where}: takes back edit {event.edit}, which the log did not make")
    ids = [edit for event in events if (edit := new_id[event.edit or 0]) is not None]
    if ids:
        revert_edits(editor.project, *ids)


def _threshold(event: LogEvent) -> Threshold:
    """A threshold as a log tells it. Raises `UsageError` for one that cannot be."""
    try:
        return Threshold(**event.detail["threshold"])
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{event.where}: holds no threshold") from error
