"""Replay another project's log: every edit in order, and every revert and threshold between them.

With the same base, layer, recipe, seed and guard as in the log, the result is the same to the bit on the same machine,
because an edit depends on the edits before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from scen_cli.data.log_events import LogEvent
from scen_cli.editing.edit_plan import Outcome, outcome_of
from scen_cli.editing.editor import Editor
from scen_cli.editing.revert_edits import revert_edits
from scen_cli.errors import UsageError
from scen_cli.experts.fit_records import FittedExpert
from scen_cli.project.ledger_rows import Threshold

COMPARED = ("weights_digest", "layer", "target_module", "template", "recipe", "seed", "dtype", "quantize")


def differences(editor: Editor, events: Sequence[LogEvent]) -> list[str]:
    """Why the result will differ from the logged project: other settings, and events that are not replayed."""
    reasons, settings = [], editor.project.settings
    for event in events:
        if event.kind == "init":
            logged = {name: event.detail.get(name) for name in COMPARED}
            reasons += [
                f"`{name}` was {value!r}, here it is {settings.get(name)!r}"
                for name, value in logged.items()
                if value != settings.get(name)
            ]
    logged_guards = [event.detail.get("rows") for event in events if event.kind == "guard"]
    if logged_guards and logged_guards[-1] != (settings.get("guard") or {}).get("rows"):
        reasons.append("the guard's prompts differ: give `scen init --guard` the same file")
    steps = [step for step in _steps(events) if step[0].kind in _EDITS]
    if incomplete := sum(_size(step) > 1 for step in steps) - sum(map(len, _batches(steps))):
        reasons.append(
            f"{incomplete} experts were trained in batches with records that are not in the log: they are trained alone"
        )
    if any(event.kind == "compress" for event in events):
        reasons.append("compressed experts are full ones again: run `scen compress` afterwards")
    return reasons


def replay(editor: Editor, events: Sequence[LogEvent]) -> Iterator[list[Outcome]]:
    """Replay a log from where an earlier run stopped. Call inside `project.writing()`.

    Every event that this writes names the log entry that it follows.

    Yields:
        The outcomes of the edits of each entry, or of entries that were trained together.

    Raises:
        UsageError: The log is the project's own, or it reverts an edit that it never made.
    """
    ledger, log = editor.project.ledger, events[0].hash
    if ledger.has_event(log):
        raise UsageError("this is the project's own log", hint="`--dir NEW` makes the same edits in another project")
    done = _replayed_before(editor, log)
    last = max((position for position, event in enumerate(events) if event.hash in done), default=-1)
    ahead = {event.hash for event in events[last + 1 :]}
    new_ids: dict[int, int | None] = {}  # by id in the log; None for an edit that could not be made
    steps = _steps(events)
    experts = _LoggedBatches(editor, [step for step in steps if step[0].kind in _EDITS])
    try:
        for entries in steps:
            kind, entry = entries[0].kind, entries[-1].hash
            ledger.event_notes = {"replayed": [log, entry]}
            if kind in _EDITS:
                outcomes = _skip(entries, done[entry]) if entry in done else _train(editor, entries, new_ids, experts)
                new_ids |= {event.edit or 0: outcome.edit for event, outcome in zip(entries, outcomes, strict=True)}
                yield outcomes
            elif kind == "revert" and entry in ahead:
                _revert(editor, entries, new_ids)
            elif kind == "calibrate" and entry in ahead:
                editor.project.set_threshold(_threshold(entries[0]))
    finally:
        ledger.event_notes = {}


def _replayed_before(editor: Editor, log: str) -> dict[str, list[int]]:
    """What an earlier run replayed of a log: by the hash of an entry, the edits that it made or reverted."""
    found: dict[str, list[int]] = {}
    for event in editor.project.ledger.changes():
        replayed = event["detail"].get("replayed")
        if replayed and replayed[0] == log:
            found.setdefault(replayed[1], []).append(event["edit"])
    return found


_EDITS = ("edit", "edit-failed")
Step = list[LogEvent]  # entries that were one change: edits that share an expert, or edits reverted at once


def _steps(events: Sequence[LogEvent]) -> list[Step]:
    def key(event: LogEvent) -> tuple[str, object]:
        together = event.detail.get("together")
        kind = "edit" if event.kind in _EDITS else event.kind
        return kind, tuple(together) if isinstance(together, list) else event.where.line

    return [list(group) for _key, group in groupby(events, key=key)]


def _index(step: Step) -> int:
    return int(step[0].detail.get("batch", (0, 1))[0])


def _size(step: Step) -> int:
    return int(step[0].detail.get("batch", (0, 1))[1])


def _batches(steps: Iterable[Step]) -> list[list[Step]]:
    """The batches of several experts that stand in the log as a whole."""
    batches: list[list[Step]] = []
    for step in steps:
        if _index(step) == 0:
            batches.append([])
        if batches and _index(step) == len(batches[-1]):
            batches[-1].append(step)
    return [batch for batch in batches if len(batch) > 1 and all(_size(step) == len(batch) for step in batch)]


class _LoggedBatches:
    """Trains experts in the batches in which the log's were trained: the last digits depend on it."""

    def __init__(self, editor: Editor, steps: Sequence[Step]) -> None:
        self._editor = editor
        self._batch_of = {step[-1].hash: batch for batch in _batches(steps) for step in batch}
        self._fitted: tuple[list[Step], list[FittedExpert]] = ([], [])

    def expert(self, step: Step) -> FittedExpert | None:
        """The expert of a step, if it was trained in a batch; None: train it alone."""
        batch = self._batch_of.get(step[-1].hash)
        if batch is None:
            return None
        if self._fitted[0] is not batch:
            groups = [[event.record for event in one if event.record is not None] for one in batch]
            self._fitted = batch, self._editor.fit(groups)
        return self._fitted[1][_index(step)]


def _skip(events: Sequence[LogEvent], edits: Sequence[int]) -> list[Outcome]:
    """Outcomes of edits that an earlier run made. Raises `UsageError` if their number differs: the log was changed."""
    if len(events) != len(edits):
        raise UsageError(f"{events[0].where}: an earlier run made {len(edits)} edits from this, not {len(events)}")
    pairs = zip(events, edits, strict=True)
    return [Outcome(str(event.where), "skipped", edit, f"already edit {edit}") for event, edit in pairs]


def _train(editor: Editor, events: Step, new_ids: Mapping[int, int | None], experts: _LoggedBatches) -> list[Outcome]:
    records = [(event.record, event.where) for event in events if event.record is not None]
    active = set(editor.project.ledger.active_experts())
    logged = [event.detail.get("supersedes") or [] for event in events]
    superseding = [tuple(sorted({new_ids.get(older) or 0 for older in ids} & active)) for ids in logged]
    note = next((event.note for event in events if event.note), "")
    try:
        edits = editor.edit_group(records, superseding, note, experts.expert(events))
    except UsageError as error:
        return [Outcome(str(where), "failed", reason=str(error)) for _record, where in records]
    pairs = zip(edits, records, strict=True)
    return [outcome_of(editor.project, edit, where) for edit, (_record, where) in pairs]


def _revert(editor: Editor, events: Sequence[LogEvent], new_ids: Mapping[int, int | None]) -> None:
    """Revert what the log reverts, without edits that could not be made here."""
    for event in events:
        if event.edit not in new_ids:
            raise UsageError(f"{event.where}: reverts edit {event.edit}, which the log did not make")
    ids = [edit for event in events if (edit := new_ids[event.edit or 0]) is not None]
    if ids:
        revert_edits(editor.project, *ids)


def _threshold(event: LogEvent) -> Threshold:
    """The threshold in an entry. Raises `UsageError` if it is not valid."""
    try:
        return Threshold(**event.detail["threshold"])
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{event.where}: its threshold is not valid") from error
