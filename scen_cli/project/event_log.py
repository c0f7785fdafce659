"""The event log: each entry hashed with the one before it; and what the tables must say, by what it tells.

The log cannot be changed, thinned out or put in another order without breaking a hash, nor can a table be changed
beside it: `contradictions` makes every table's content anew from the events. What can still be done is to write both
anew from some place on: whoever has kept the newest hash elsewhere (`scen log --verify` prints it) finds that too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CHANGING = ("state", "superseded_by", "file", "sha256", "size", "bias", "activation", "rank")  # of an edit's row
SIGNED = ("author", "version")  # in the detail of every event: who did it, and by which scen

Row = Mapping[str, Any]


def event_hash(previous: str, event: Row) -> str:
    """The hash of an event that follows one of hash `previous` (nothing before the first)."""
    content = json.dumps([previous, event["created"], event["kind"], event["edit"], event["detail"]])
    return hashlib.sha256(content.encode()).hexdigest()


def settings_told(detail: Row) -> dict[str, Any]:
    """The settings in the detail of the event that made a project, without what else it tells."""
    return {name: value for name, value in detail.items() if name not in (*SIGNED, "threshold", "nonce")}


def chain_problems(events: Iterable[Row]) -> list[str]:
    """Where the log is not the chain that it was."""
    problems, previous = [], ""
    for place, event in enumerate(events, start=1):
        if event["id"] != place:
            problems.append(f"event {event['id']} stands where event {place} must")
        if event["hash"] != event_hash(previous, event):
            problems.append(f"event {event['id']} does not follow from the one before it")
        previous = event["hash"]
    return problems


def digest_of_row(row: Row) -> str:
    """What a row of `edits` comes to, without what later events may change."""
    return _digest({name: value for name, value in row.items() if name not in CHANGING})


def digest_of_rows(rows: Iterable[Row]) -> str:
    """What some rows come to, whole."""
    return _digest([dict(row) for row in rows])


def digest_of_guard(rows: Iterable[tuple[str, str, str]]) -> str:
    """What a guard's rows come to: (prompt, part, source) of each, in order."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass
class ReplayedState:
    """What the events say: of each edit, what is known of its row (`row`: its digest); every theta that was set; the
    settings; the digests of each evaluation and of the guard's prompts."""

    edits: dict[int, dict[str, Any]] = field(default_factory=dict)
    thresholds: list[Row] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[int, str] = field(default_factory=dict)
    guard: str | None = None

    def apply(self, kind: str, edit: int | None, detail: dict[str, Any]) -> None:
        """Take in one event. (Those of older versions tell less.)"""
        if kind == "init":
            self.settings = settings_told(detail)
            self.thresholds.append(detail["threshold"])
        elif kind in ("edit", "edit-failed") and edit is not None:
            names = (*CHANGING, "prompt", "target", "row")
            self.edits[edit] = {name: detail[name] for name in names if name in detail}
            for older in detail.get("supersedes", []):
                self.edits.setdefault(older, {}).update(state="superseded", superseded_by=edit)
        elif kind in ("compress", "gc") and edit is not None:
            known = ("file", "sha256", "size", "rank")
            self.edits.setdefault(edit, {}).update({name: detail[name] for name in known if name in detail})
        elif kind == "revert" and edit is not None:
            self.edits.setdefault(edit, {})["state"] = "reverted"
            for older in detail["reactivated"]:
                self.edits.setdefault(older, {}).update(state="active", superseded_by=None)
            for older, newer in detail.get("superseded_by_newer", {}).items():
                self.edits.setdefault(int(older), {}).update(superseded_by=newer)
            for other, (bias, activation) in detail.get("biases", {}).items():
                self.edits.setdefault(int(other), {}).update(bias=bias, activation=activation)
        elif kind == "guard":
            self.guard = detail["rows"]
            told = ("sha256", "prompts", "sources", "rows", "file", "size")
            self.settings["guard"] = {name: detail[name] for name in told if name in detail}
        elif kind == "state":
            self.settings["state"] = {name: detail[name] for name in ("file", "sha256", "size")}
        elif kind == "evaluation":
            self.evaluations[detail["id"]] = detail["row"]
        elif kind == "migrate":
            for known_edit, row in detail["edits"].items():
                self.edits[int(known_edit)] = {**self.edits.get(int(known_edit), {}), **row}
            self.evaluations = {int(one): digest for one, digest in detail["evaluations"].items()}
            self.thresholds = [{name: one[name] for name in one if name != "id"} for one in detail["thresholds"]]
        if kind != "init" and "threshold" in detail:
            self.thresholds.append(detail["threshold"])


def replay_events(events: Iterable[Row]) -> ReplayedState:
    """What a log says, event by event. An event that cannot be understood says nothing."""
    told = ReplayedState()
    for event in events:
        try:
            told.apply(event["kind"], event["edit"], json.loads(event["detail"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return told


def contradictions(
    told: ReplayedState,
    edits: list[Row],
    thresholds: list[Row],
    settings: Row,
    evaluations: list[Row],
    guard: str | None,
) -> list[str]:
    """Where the tables say other than the events that made them."""
    problems = []
    rows = {row["id"]: row for row in edits}
    for edit_id in sorted({*rows, *told.edits}):
        if edit_id not in told.edits:
            problems.append(f"edit {edit_id} is in no event")
        elif edit_id not in rows:
            problems.append(f"edit {edit_id} is gone")
        elif wrong := _differing(told.edits[edit_id], rows[edit_id]):
            problems.append(f"edit {edit_id} is not as it was committed: {', '.join(wrong)}")
    problems += _threshold_problems(told, thresholds)
    for name in sorted({*told.settings, *settings}):
        if told.settings.get(name) != settings.get(name):
            problems.append(f"setting `{name}` is {settings.get(name)!r}; it was set to {told.settings.get(name)!r}")
    found = {row["id"]: row for row in evaluations}
    for one in sorted({*found, *told.evaluations}):
        expected = told.evaluations.get(one)
        if one not in found or one not in told.evaluations:
            problems.append(f"evaluation {one} is {'gone' if one not in found else 'in no event'}")
        elif expected != digest_of_rows([found[one]]):
            problems.append(f"evaluation {one} is not as it was recorded")
    if told.guard != guard:
        problems.append("the guard's prompts are not those that were committed")
    return problems


def _differing(told: Row, row: Row) -> list[str]:
    """Columns of an edit that are not as told."""
    wrong = [name for name, value in told.items() if name != "row" and row[name] != value]
    if "row" in told and told["row"] != digest_of_row(row) and not {"prompt", "target"} & {*wrong}:
        wrong.append("its record")
    return wrong


def _threshold_problems(told: ReplayedState, rows: list[Row]) -> list[str]:
    found = [{name: value for name, value in row.items() if name != "id"} for row in rows]
    if [one["theta"] for one in found] != [one["theta"] for one in told.thresholds]:
        now, was = (one[-1]["theta"] if one else None for one in (found, told.thresholds))
        return [f"theta is {now}; it was set to {was}"] if now != was else ["the history of theta was changed"]
    pairs = zip(found, told.thresholds, rows, strict=True)
    return [f"threshold {row['id']} is not as it was set" for is_now, was, row in pairs if is_now != was]
