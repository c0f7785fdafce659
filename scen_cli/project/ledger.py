"""The ledger: one SQLite database that says which edits stand, and how each came about.

Rollback journal and `synchronous=FULL`: a write-ahead log can be corrupted on reset by the
SQLite versions 3.7.0 to 3.51.2, which many systems ship. Every change goes through
`Ledger.change()`, one transaction that also appends to the event log.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from scen_cli.errors import DamageFound
from scen_cli.project.migrations import migrations

BUSY_SECONDS = 30.0  # how long to wait for another process's transaction


@dataclass(frozen=True)
class Edit:
    """One row of the `edits` table."""

    id: int
    prompt: str
    target: str
    subject: str | None
    rephrases: tuple[str, ...]
    state: str
    superseded_by: int | None
    reason: str | None
    file: str | None
    sha256: str | None
    size: int | None
    expert_losses: tuple[float, ...]
    neuron_losses: tuple[float, ...]
    activation: float | None
    seed: int
    seconds: float
    created: str
    source: str
    source_line: int
    expert: int | None
    bias: float | None
    learned: tuple[str, ...]
    rank: int | None
    subject_forms: tuple[tuple[int, ...], ...] | None

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Edit:
        names = ("rephrases", "expert_losses", "neuron_losses", "learned")
        forms = json.loads(row["subject_forms"]) if row["subject_forms"] else None
        decoded = {name: tuple(json.loads(row[name] or "[]")) for name in names}
        return cls(**{**row, **decoded, "subject_forms": tuple(map(tuple, forms)) if forms is not None else None})


@dataclass(frozen=True)
class Threshold:
    """One row of the history of theta. A calibrated one knows the rate of `false_activation` it was set for,
    what rate is `expected` on fresh prompts, its 95 % interval `low` to `high`, and by how many `prompts`."""

    theta: float
    chosen_by: str
    created: str
    false_activation: float | None = None
    expected: float | None = None
    low: float | None = None
    high: float | None = None
    prompts: int | None = None


@dataclass(frozen=True)
class GuardPrompt:
    """A prompt that must stay the base's own, and its `part`: `fit` (neurons may learn from it), `calibration`
    (theta is set by it) or `report` (neither: what is said of theta is tried on it)."""

    id: int
    prompt: str
    part: str
    source: str


class Ledger:
    """Reads and changes one project's `scen.db`."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
        try:
            self._connection.execute("PRAGMA journal_mode=DELETE")
            self._connection.execute("PRAGMA synchronous=FULL")
            self.db = Database(self._connection)
            migrations.apply(self.db)
        except sqlite3.OperationalError:  # locked, or a full disk: nothing is wrong with the file
            raise
        except sqlite3.DatabaseError as error:
            raise DamageFound(f"`{path.name}` is not a readable ledger: {error}") from error

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def change(self, kind: str, edit: int | None = None, **detail: Any) -> Iterator[Database]:
        """One transaction; the event is appended last, so it is there if and only if the change is."""
        with self.db.atomic():
            yield self.db
            self._append_event(kind, edit, detail)

    def settings(self) -> dict[str, Any]:
        return {row["name"]: json.loads(row["value"]) for row in self.db["settings"].rows}

    def edits(self, *states: str) -> list[Edit]:
        """Edits in the given states (all of them if none is given), in the order they were made."""
        where = f"state in ({','.join('?' * len(states))})" if states else None
        return [Edit.from_row(row) for row in self.db["edits"].rows_where(where, states, order_by="id")]

    def find_same(self, prompt: str, target: str) -> list[Edit]:
        """Edits of exactly this prompt and target, newest first."""
        rows = self.db["edits"].rows_where("prompt = ? and target = ?", [prompt, target], order_by="id desc")
        return [Edit.from_row(row) for row in rows]

    def superseded_by(self, edit_id: int) -> list[int]:
        """Ids of the edits that one took the place of."""
        rows = self.db.execute("select id from edits where superseded_by = ? order by id", [edit_id])
        return [row[0] for row in rows.fetchall()]

    def prompts_in_force(self) -> list[tuple[int, str]]:
        """(id, prompt) of each active edit, in order."""
        return self.db.execute("select id, prompt from edits where state = 'active' order by id").fetchall()

    def experts_in_force(self) -> dict[int, int]:
        """Which expert each active edit has: {edit: expert}, in order of the edits."""
        return dict(self.db.execute("select id, expert from edits where state = 'active' order by id").fetchall())

    def in_force_for(self, prompt: str) -> list[int]:
        """Active edits of exactly this prompt."""
        rows = self.db.execute("select id from edits where prompt = ? and state = 'active'", [prompt])
        return [row[0] for row in rows.fetchall()]

    def sharing(self, edit_id: int) -> list[int]:
        """Active edits that have the same expert as this one, itself among them."""
        mine = "select expert from edits where id = ?"
        rows = self.db.execute(
            f"select id from edits where state = 'active' and expert = ({mine}) order by id", [edit_id]
        )
        return [row[0] for row in rows.fetchall()]

    def edit(self, edit_id: int) -> Edit | None:
        rows = list(self.db["edits"].rows_where("id = ?", [edit_id]))
        return Edit.from_row(rows[0]) if rows else None

    def theta(self) -> float:
        """The threshold in force: the newest of the history."""
        return self.threshold().theta

    def threshold(self) -> Threshold:
        """The threshold in force, and how it was chosen."""
        row = next(self.db["thresholds"].rows_where(order_by="id desc", limit=1))
        return Threshold(**{name: value for name, value in row.items() if name != "id"})

    def set_threshold(self, threshold: Threshold) -> None:
        """Append to the history; call inside `change()`, with theta in the event's detail."""
        self.db["thresholds"].insert(vars(threshold))

    def guard(self) -> list[GuardPrompt]:
        """The guard prompts, in the order of the rows of their keys."""
        return [GuardPrompt(**row) for row in self.db["guard"].rows_where(order_by="id")]

    def biases_in_force(self) -> dict[int, float]:
        """The bias of each expert's neuron: {expert: bias}."""
        query = "select expert, max(bias) from edits where state = 'active' group by expert"
        return {expert: bias or 0.0 for expert, bias in self.db.execute(query).fetchall()}

    def ranks_in_force(self) -> dict[int, int]:
        """The rank of each expert in force, 0 of a full one: {expert: rank}."""
        query = "select expert, max(rank) from edits where state = 'active' group by expert"
        return {expert: rank or 0 for expert, rank in self.db.execute(query).fetchall()}

    def subject_forms_in_force(self) -> dict[int, list[list[int]] | None]:
        """How the subject of each edit in force is written in tokens; None where that is not known yet."""
        query = "select id, subject_forms from edits where state = 'active'"
        return {edit: json.loads(forms) if forms else None for edit, forms in self.db.execute(query).fetchall()}

    def least_activation(self) -> float | None:
        """The least that an edit in force gives its own neuron; None if there is none."""
        return self.db.execute("select min(activation) from edits where state = 'active'").fetchone()[0]

    def long_targets(self, size: int) -> list[tuple[str, str]]:
        """(prompt, target) of edits in force whose target has so many bytes or more."""
        query = "select prompt, target from edits where state = 'active' and length(cast(target as blob)) >= ?"
        return self.db.execute(query, [size]).fetchall()

    def next_edit_id(self) -> int:
        return int(self.db.execute("select coalesce(max(id), 0) + 1 from edits").fetchone()[0])

    def evaluation(self, evaluation_id: int) -> dict[str, Any] | None:
        """One evaluation, with its `settings`, `metrics` and `samples` decoded."""
        for row in self.db["evaluations"].rows_where("id = ?", [evaluation_id]):
            decoded = {name: json.loads(row[name] or "[]") for name in ("settings", "metrics", "samples")}
            return {**row, **decoded}
        return None

    def evaluations(self) -> list[dict[str, Any]]:
        """Every evaluation's id, suite, time, newest change before it and metrics, oldest first."""
        rows = self.db["evaluations"].rows_where(
            select="id, suite, created, last_change, settings, metrics", order_by="id"
        )
        return [{**row, **{name: json.loads(row[name]) for name in ("settings", "metrics")}} for row in rows]

    def current_evaluations(self) -> dict[str, dict[str, Any]]:
        """Metrics of each suite's newest evaluation, of those that scored the edits now in force."""
        rows = self.db["evaluations"].rows_where("last_change = ?", [self.last_change()], order_by="id")
        return {row["suite"]: json.loads(row["metrics"]) for row in rows}

    def last_change(self) -> int:
        """Id of the newest event that made, failed to make or took back an edit, or moved theta; 0 if there
        is none."""
        kinds = "'edit', 'edit-failed', 'revert', 'calibrate', 'compress'"
        row = self.db.execute(f"select id from events where kind in ({kinds}) order by id desc limit 1").fetchone()
        return int(row[0]) if row else 0

    def events(self) -> list[dict[str, Any]]:
        return list(self.db["events"].rows_where(order_by="id"))

    def integrity_problems(self) -> list[str]:
        """What SQLite's own check and the event chain say; empty when all is well."""
        answers = [row[0] for row in self.db.execute("pragma integrity_check").fetchall()]
        problems = [f"scen.db: {answer}" for answer in answers if answer != "ok"]
        previous = ""
        for event in self.events():
            if event["hash"] != _event_hash(previous, event):
                problems.append(f"event {event['id']} does not follow from the one before it")
            previous = event["hash"]
        return problems + self._contradictions()

    def _contradictions(self) -> list[str]:
        """Where the tables say other than the events that made them."""
        said: dict[int, dict[str, Any]] = {}  # of each edit, by its events
        theta = None
        for event in self.events():
            detail = json.loads(event["detail"])
            if event["kind"].startswith("edit"):
                said[event["edit"]] = {name: detail.get(name) for name in ("prompt", "target", "sha256", "bias")}
            elif event["kind"] == "compress":
                said.setdefault(event["edit"], {})["sha256"] = detail["sha256"]
            elif event["kind"] == "init":
                theta = detail["recipe"]["theta"]
            theta = detail.get("theta", theta)
        edits = {edit.id: edit for edit in self.edits()}
        told = [
            f"edit {edit_id} is not as it was committed"
            for edit_id, row in said.items()
            if row != {name: getattr(edits.get(edit_id), name, None) for name in row}
        ]
        if theta != self.theta():
            told.append(f"theta is {self.theta()}; it was set to {theta}")
        return told

    def _append_event(self, kind: str, edit: int | None, detail: dict[str, Any]) -> None:
        last = self.db.execute("select hash from events order by id desc limit 1").fetchone()
        event = {"created": now(), "kind": kind, "edit": edit, "detail": json.dumps(detail, sort_keys=True)}
        self.db["events"].insert({**event, "hash": _event_hash(last[0] if last else "", event)})


def _event_hash(previous: str, event: dict[str, Any]) -> str:
    content = json.dumps([previous, event["created"], event["kind"], event["edit"], event["detail"]])
    return hashlib.sha256(content.encode()).hexdigest()


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
