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

from sqlite_utils import Database, Migrations

from scen_cli.errors import DamageFound

BUSY_SECONDS = 30.0  # how long to wait for another process's transaction
_migrations = Migrations("scen")


@_migrations()
def create_tables(db: Database) -> None:
    db["settings"].create({"name": str, "value": str}, pk="name", not_null={"value"})
    db["edits"].create(
        {
            "id": int,
            "prompt": str,
            "target": str,
            "subject": str,
            "rephrases": str,  # JSON list
            "state": str,  # active | superseded | reverted | failed
            "superseded_by": int,
            "reason": str,  # why a failed edit failed
            "file": str,
            "sha256": str,
            "size": int,
            "expert_losses": str,  # JSON list, one per step
            "neuron_losses": str,  # JSON list, one per step
            "activation": float,  # of the edit's neuron on its own key
            "seed": int,
            "seconds": float,
            "created": str,
            "source": str,
            "source_line": int,
        },
        pk="id",
        not_null={"prompt", "target", "state", "created"},
    )
    db["edits"].create_index(["prompt"])
    db["thresholds"].create({"id": int, "theta": float, "chosen_by": str, "created": str}, pk="id")
    db["evaluations"].create(
        {"id": int, "suite": str, "settings": str, "metrics": str, "last_change": int, "created": str}, pk="id"
    )
    db["events"].create({"id": int, "created": str, "kind": str, "edit": int, "detail": str, "hash": str}, pk="id")


@_migrations()
def share_experts_and_keep_samples(db: Database) -> None:
    """`expert`: the edit under whose id an edit's expert and neuron stand, its own as a rule."""
    db["edits"].add_column("expert", int)
    db.execute("update edits set expert = id where file is not null")
    db["evaluations"].add_column("samples", str)  # JSON list: every prompt, and what was answered
    theta = next(db["thresholds"].rows_where(order_by="id desc", limit=1), {"theta": None})["theta"]
    for row in list(db["evaluations"].rows):
        metrics = _by_name(json.loads(row["metrics"]), theta)
        db["evaluations"].update(row["id"], {"metrics": json.dumps(metrics), "samples": "[]"})


def _by_name(old: dict[str, Any], theta: float | None) -> dict[str, Any]:
    """Metrics of the first version, figure by figure."""
    roles = ("reliability", "generality", "locality")
    figures = {role: {"patched": old["patched"][role], "base": old["base"][role]} for role in roles}
    figures["generality"]["routed"] = old["rephrases_routed"]
    figures["locality"]["fired"] = old["locality_fired"]
    figures["generality-given-expert"] = {"patched": old["generality_given_expert"]}
    figures["token-accuracy"] = {side: old[side]["token_accuracy"] for side in ("patched", "base")}
    same = ("suite", "decoding", "last_change", "records", "edits", "not_learned", "left_out")
    return {**{name: old[name] for name in same}, "theta": theta, "figures": figures, "curves": {}}


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

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Edit:
        lists = {name: tuple(json.loads(row[name])) for name in ("rephrases", "expert_losses", "neuron_losses")}
        return cls(**{**row, **lists})


class Ledger:
    """Reads and changes one project's `scen.db`."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
        try:
            self._connection.execute("PRAGMA journal_mode=DELETE")
            self._connection.execute("PRAGMA synchronous=FULL")
            self.db = Database(self._connection)
            _migrations.apply(self.db)
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
        return float(next(self.db["thresholds"].rows_where(order_by="id desc", limit=1))["theta"])

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
        """Id of the newest event that made, failed to make or took back an edit; 0 if there is none."""
        query = "select coalesce(max(id), 0) from events where kind in ('edit', 'edit-failed', 'revert')"
        return int(self.db.execute(query).fetchone()[0])

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
        edits = {edit.id: edit for edit in self.edits()}
        told = []
        for event in self.events():
            edit, detail = edits.get(event["edit"]), json.loads(event["detail"])
            if event["kind"].startswith("edit"):
                row = {name: getattr(edit, name, None) for name in ("prompt", "target", "sha256")}
                if row != {name: detail.get(name) for name in row}:
                    told.append(f"edit {event['edit']} is not as it was committed")
            elif event["kind"] == "init" and detail["recipe"]["theta"] != self.theta():
                told.append(f"theta is {self.theta()}; the project was made with {detail['recipe']['theta']}")
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
