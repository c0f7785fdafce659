"""The event log: a hash chain, and the content that the tables must have according to it.

Nobody can change, remove or reorder an event without breaking a hash, or change a table without contradicting the
events: `contradictions` compares every table with what `replay_events` computes. A consistent rewrite of log and
tables is not detected here. It is by whoever keeps the newest hash elsewhere (`scen log --verify` prints it).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MUTABLE = ("state", "superseded_by", "file", "sha256", "size", "bias", "activation", "rank")  # columns of an edit
SIGNED = ("author", "version")  # in the detail of every event: who did it, and with which scen
STATE_FIELDS = ("file", "sha256", "size")  # of the setting that names the file of a method's state
GUARD_FIELDS = (*STATE_FIELDS, "prompts", "sources", "rows")  # of the setting that names the guard's file

Row = Mapping[str, Any]


def event_hash(previous: str, event: Row) -> str:
    """The hash of an event. `previous` is the hash of the event before it, empty for the first."""
    content = json.dumps([previous, event["created"], event["kind"], event["edit"], event["detail"]])
    return hashlib.sha256(content.encode()).hexdigest()


def settings_of_init(detail: Row) -> dict[str, Any]:
    """The settings in the detail of the event that made a project."""
    return {name: value for name, value in detail.items() if name not in (*SIGNED, "threshold", "nonce")}


def chain_problems(events: Iterable[Row]) -> list[str]:
    """Where the chain of hashes is broken."""
    problems, previous = [], ""
    for position, event in enumerate(events, start=1):
        if event["id"] != position:
            problems.append(f"event {event['id']} is where event {position} must be")
        if event["hash"] != event_hash(previous, event):
            problems.append(f"event {event['id']} does not follow from the one before it")
        previous = event["hash"]
    return problems


def digest_of_row(row: Row) -> str:
    """The sha256 of a row of `edits`, without the columns that later events may change."""
    return _digest({name: value for name, value in row.items() if name not in MUTABLE})


def digest_of_rows(rows: Iterable[Row]) -> str:
    """The sha256 of whole rows."""
    return _digest([dict(row) for row in rows])


def digest_of_guard(rows: Iterable[tuple[str, str, str]]) -> str:
    """The sha256 of the guard's rows: (prompt, split, source) of each, in order."""
    return _digest(list(rows))


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass
class ReplayedState:
    """The content of the tables according to the events.

    Attributes:
        edits: By edit: the columns that events record, and `row`, the digest of the others.
        thresholds: Every threshold, oldest first.
        settings: The settings.
        evaluations: By evaluation: the digest of its row.
        guard: The digest of the guard's rows.
    """

    edits: dict[int, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    thresholds: list[Row] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[int, str] = field(default_factory=dict)
    guard: str | None = None

    def apply(self, kind: str, edit: int, detail: dict[str, Any]) -> None:
        """Apply one event."""
        match kind:
            case "init":
                self.settings = settings_of_init(detail)
            case "edit" | "edit-failed":
                self.edits[edit] |= {name: detail[name] for name in (*MUTABLE, "prompt", "target", "row")}
                for older in detail["supersedes"]:
                    self.edits[older] |= {"state": "superseded", "superseded_by": edit}
            case "compress" | "gc":
                self.edits[edit] |= {name: detail[name] for name in MUTABLE if name in detail}
            case "revert":
                self._apply_revert(edit, detail)
            case "guard":
                self.guard = detail["rows"]
                self.settings["guard"] = {name: detail[name] for name in GUARD_FIELDS}
            case "state":
                self.settings["state"] = {name: detail[name] for name in STATE_FIELDS}
            case "evaluation":
                self.evaluations[detail["id"]] = detail["row"]
            case "migrate":
                # rows that no earlier event recorded stay unrecorded
                for known, columns in self.edits.items():
                    columns["row"] = detail["edits"].get(str(known))
                self.evaluations = {known: detail["evaluations"].get(str(known), "") for known in self.evaluations}
                # columns that earlier events recorded keep the recorded value
                pairs = zip(detail["thresholds"], self.thresholds, strict=True)
                self.thresholds = [_without_id(row) | dict(recorded) for row, recorded in pairs]
        if "threshold" in detail:
            self.thresholds.append(detail["threshold"])

    def _apply_revert(self, edit: int, detail: dict[str, Any]) -> None:
        self.edits[edit]["state"] = "reverted"
        for older in detail["reactivated"]:
            self.edits[older] |= {"state": "active", "superseded_by": None}
        for older, newer in detail.get("superseded_by_newer", {}).items():
            self.edits[int(older)]["superseded_by"] = newer
        for expert, (bias, activation) in detail.get("biases", {}).items():
            self.edits[int(expert)] |= {"bias": bias, "activation": activation}


def replay_events(events: Iterable[Row]) -> ReplayedState:
    """Apply every event of a log. An event that is malformed is left out."""
    expected = ReplayedState()
    for event in events:
        try:
            expected.apply(event["kind"], event["edit"], json.loads(event["detail"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return expected


def contradictions(expected: ReplayedState, tables: Mapping[str, list[Row]], settings: Row) -> list[str]:
    """Where the tables (rows by table) and the settings differ from what the events recorded."""
    problems = []
    rows = {row["id"]: row for row in tables["edits"]}
    for edit_id in sorted({*rows, *expected.edits}):
        if edit_id not in expected.edits:
            problems.append(f"edit {edit_id} is in no event")
        elif edit_id not in rows:
            problems.append(f"edit {edit_id} is gone")
        elif wrong := _wrong_columns(expected.edits[edit_id], rows[edit_id]):
            problems.append(f"edit {edit_id} is not as it was committed: {', '.join(wrong)}")
    problems += _threshold_problems(expected.thresholds, tables["thresholds"])
    for name in sorted({*expected.settings, *settings}):
        if (recorded := expected.settings.get(name)) != (value := settings.get(name)):
            problems.append(f"setting `{name}` is {value!r}; it was set to {recorded!r}")
    digests = {row["id"]: digest_of_rows([row]) for row in tables["evaluations"]}
    for evaluation in sorted({*digests, *expected.evaluations}):
        if evaluation not in digests or evaluation not in expected.evaluations:
            problems.append(f"evaluation {evaluation} is {'gone' if evaluation not in digests else 'in no event'}")
        elif digests[evaluation] != expected.evaluations[evaluation]:
            problems.append(f"evaluation {evaluation} is not as it was recorded")
    guard = [(row["prompt"], row["split"], row["source"]) for row in tables["guard"]]
    if (guard or expected.guard is not None) and expected.guard != digest_of_guard(guard):
        problems.append("the guard's prompts are not those that were committed")
    return problems


def _wrong_columns(expected: Row, row: Row) -> list[str]:
    """Columns of an edit that differ from what its events recorded."""
    wrong = [name for name, value in expected.items() if name != "row" and row[name] != value]
    if "row" in expected and expected["row"] != digest_of_row(row) and not {"prompt", "target"} & {*wrong}:
        wrong.append("its record")
    return wrong


def _threshold_problems(expected: list[Row], rows: list[Row]) -> list[str]:
    found = [row["theta"] for row in rows]
    recorded = [row["theta"] for row in expected]
    if found != recorded:
        value, was = (history[-1] if history else None for history in (found, recorded))
        return [f"theta is {value}; it was set to {was}"] if value != was else ["the history of theta was changed"]
    pairs = zip(rows, expected, strict=True)
    return [f"threshold {row['id']} is not as it was set" for row, was in pairs if _without_id(row) != was]


def _without_id(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "id"}
