"""The ledger: one SQLite database that says which edits stand, and how each came about.

Every change goes through `Ledger.change()`, one transaction that also appends to the event log. What a ledger holds is
not believed: it has no triggers or views, and its rows are checked as they are read.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from scen_cli._version import __version__
from scen_cli.errors import VERIFY_HINT, DamageFound, ScenError, UsageError
from scen_cli.project.author import author_of
from scen_cli.project.disk import connect
from scen_cli.project.event_log import (
    SIGNED,
    digest_of_row,
    digest_of_rows,
    event_hash,
    settings_told,
)
from scen_cli.project.ledger_rows import Edit, GuardPrompt, Threshold, decoded, unreadable
from scen_cli.project.migrations import migrations
from scen_cli.project.schema import refuse_other_tables, refuse_what_runs

CHANGES = "'edit', 'edit-failed', 'revert', 'calibrate', 'compress'"  # events that may change an answer
BUSY_SECONDS = 30.0  # how long to wait for another process's transaction


class Ledger:
    """Reads and changes one project's `scen.db`."""

    def __init__(self, path: Path, author: str | None = None) -> None:
        """`author`: who makes the changes; git's user or the login unless it is given."""
        self._author = author
        self.noted: dict[str, Any] = {}  # what is told beside every event, while it is set
        try:
            self._connection = connect(path, BUSY_SECONDS)
            self.db = Database(self._connection, execute_plugins=False)
            refuse_what_runs(self.db)
            self.updated = self._bring_up_to_date()
            refuse_other_tables(self.db)
        except sqlite3.OperationalError as error:
            if "no such" in str(error) or "duplicate" in str(error):
                raise unreadable("its tables", error) from error
            if "readonly" in str(error):
                raise ScenError(
                    "this project must be brought up to date once, and its folder cannot be written to",
                    hint="open it where you may write, or open a copy of it",
                ) from error
            raise  # locked, or a full disk: nothing is wrong with the file
        except sqlite3.DatabaseError as error:
            raise DamageFound(f"`{path.name}` is not a readable ledger: {error}", hint=VERIFY_HINT) from error

    def _bring_up_to_date(self) -> bool:
        """Apply what migrations are pending, all or none; of two processes that open an old project one does.
        Returns whether there were any. Raises `UsageError` for a ledger that a newer scen made."""
        known = {migration.name for migration in migrations.pending(Database(memory=True))}
        if newer := sorted({one.name for one in migrations.applied(self.db)} - known):
            raise UsageError(
                f"this project was made by a newer scen than {__version__} (its ledger has `{newer[0]}`)",
                hint="update scen: `pip install -U scen-cli`",
            )
        if not migrations.pending(self.db):
            return False
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            pending = [migration.name for migration in migrations.pending(self.db)]
            migrations.apply(self.db)
            if pending and self.db["events"].count:
                self._append_event("migrate", None, {"to": pending, **self._as_it_is()})
            self._connection.execute("COMMIT")
        except BaseException:
            self.db.rollback()
            raise
        return bool(pending)

    def _as_it_is(self) -> dict[str, Any]:
        """What the tables say, for an event: of what is older than the events that would tell."""
        names = ("state", "superseded_by", "file", "size", "rank", "activation")
        return {
            "edits": {
                str(row["id"]): {**{name: row[name] for name in names}, "row": digest_of_row(row)}
                for row in self.db["edits"].rows
            },
            "thresholds": list(self.db["thresholds"].rows_where(order_by="id")),
            "evaluations": {str(row["id"]): digest_of_rows([row]) for row in self.db["evaluations"].rows},
        }

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def change(self, kind: str, edit: int | None = None, **detail: Any) -> Iterator[dict[str, Any]]:
        """One transaction; the event is appended last, so it is there if and only if the change is. What is only known
        by then may be put into the dict that this yields."""
        with self.db.atomic():
            yield detail
            self._append_event(kind, edit, detail)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside this block all is read as it was at one moment. Writers wait for its end: keep it short."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.begin_reading()
        try:
            yield
        finally:
            self.db.rollback()

    def settings(self) -> dict[str, Any]:
        """Raises `DamageFound` if one of them is not JSON."""
        return {row["name"]: decoded(f"setting `{row['name']}`", row["value"]) for row in self.db["settings"].rows}

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Raise `DamageFound` if settings are not those that the project was made with: the event says which. (A guard
        and a method's state have sums of their own.)"""
        first = next(self.db["events"].rows_where("kind = 'init'", order_by="id", limit=1), None)
        told = settings_told(decoded("event 1", first["detail"])) if first else {}
        for name in sorted({*told, *settings} - {"guard", "state"}):
            if told.get(name) != settings.get(name):
                was = f"it was set to {told.get(name)!r}"
                raise DamageFound(f"setting `{name}` in `scen.db` is {settings.get(name)!r}; {was}", hint=VERIFY_HINT)

    def edits(self, *states: str) -> list[Edit]:
        """Edits in the given states (all of them if none is given), in the order they were made."""
        where = f"state in ({','.join('?' * len(states))})" if states else None
        return [Edit.from_row(row) for row in self.db["edits"].rows_where(where, states, order_by="id")]

    def find_exact(self, prompt: str, target: str) -> list[Edit]:
        """Edits of exactly this prompt and target, newest first."""
        rows = self.db["edits"].rows_where("prompt = ? and target = ?", [prompt, target], order_by="id desc")
        return [Edit.from_row(row) for row in rows]

    def edits_superseded_by(self, edit_id: int) -> list[int]:
        """Ids of the edits that one took the place of."""
        rows = self.db.execute("select id from edits where superseded_by = ? order by id", [edit_id])
        return [row[0] for row in rows.fetchall()]

    def active_prompts(self) -> list[tuple[int, str]]:
        """(id, prompt) of each active edit, in order."""
        return self.db.execute("select id, prompt from edits where state = 'active' order by id").fetchall()

    def active_experts(self) -> dict[int, int]:
        """Which expert each active edit has: {edit: expert}, in order of the edits."""
        return dict(self.db.execute("select id, expert from edits where state = 'active' order by id").fetchall())

    def active_edits_for(self, prompt: str) -> list[int]:
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
        """The active threshold: the newest of the history."""
        return self.threshold().theta

    def threshold(self) -> Threshold:
        """The active threshold, and how it was chosen."""
        return self.thresholds(1)[0]

    def thresholds(self, newest: int | None = None) -> list[Threshold]:
        """The history of theta, newest first. Raises `DamageFound` for one that cannot be."""
        rows = list(self.db["thresholds"].rows_where(order_by="id desc", limit=newest))
        if not rows:
            raise unreadable("theta", "the table `thresholds` is empty")
        return [Threshold.from_row(row) for row in rows]

    def set_threshold(self, threshold: Threshold) -> dict[str, Any]:
        """Append to the history; call inside `change()`. Returns what its event is to tell."""
        self.db["thresholds"].insert(vars(threshold))
        return {"threshold": vars(threshold)}

    def guard(self) -> list[GuardPrompt]:
        """The guard prompts, in the order of the rows of their keys."""
        try:
            return [GuardPrompt(**row) for row in self.db["guard"].rows_where(order_by="id")]
        except (TypeError, ValueError) as error:
            raise unreadable("the guard", error) from error

    def active_biases(self) -> dict[int, float]:
        """The bias of each expert's neuron: {expert: bias}."""
        query = "select expert, max(bias) from edits where state = 'active' group by expert"
        return {expert: bias or 0.0 for expert, bias in self._numbers("bias", query)}

    def active_ranks(self) -> dict[int, int]:
        """The rank of each active expert, 0 of a full one: {expert: rank}."""
        query = "select expert, max(rank) from edits where state = 'active' group by expert"
        return {expert: int(rank or 0) for expert, rank in self._numbers("rank", query)}

    def active_subject_forms(self) -> dict[int, list[list[int]]]:
        """How the subject of each active edit is tokenised: lists of token ids."""
        query = "select id, subject_forms from edits where state = 'active'"
        rows = self.db.execute(query).fetchall()
        return {edit: decoded(f"`subject_forms` of edit {edit}", forms) for edit, forms in rows}

    def _numbers(self, what: str, query: str) -> list[tuple[int, float | None]]:
        """Pairs of an expert and a number. Raises `DamageFound` for one that is none."""
        rows = self.db.execute(query).fetchall()
        if wrong := [row for row in rows if not isinstance(row[1], int | float | None)]:
            raise unreadable(f"the {what} of expert {wrong[0][0]}", wrong[0][1])
        return rows

    def min_own_activation(self) -> float | None:
        """The least that an active edit gives its own neuron; None if there is none."""
        query = (
            "select 0, min(activation) from edits where state = 'active' and typeof(activation) in ('real', 'integer')"
        )
        return self._numbers("activation", query)[0][1]

    def long_targets(self, size: int) -> list[tuple[str, str]]:
        """(prompt, target) of active edits whose target has so many bytes or more."""
        query = "select prompt, target from edits where state = 'active' and length(cast(target as blob)) >= ?"
        return self.db.execute(query, [size]).fetchall()

    def next_edit_id(self) -> int:
        return int(self.db.execute("select coalesce(max(id), 0) + 1 from edits").fetchone()[0])

    def evaluation(self, evaluation_id: int) -> dict[str, Any] | None:
        """One evaluation, with its `settings`, `metrics` and `samples` decoded."""
        for row in self.db["evaluations"].rows_where("id = ?", [evaluation_id]):
            names = ("settings", "metrics", "samples")
            return {**row, **{name: decoded(f"evaluation {row['id']}", row[name] or "[]") for name in names}}
        return None

    def evaluations(self) -> list[dict[str, Any]]:
        """Every evaluation's id, suite, time, newest change before it and metrics, oldest first."""
        rows = self.db["evaluations"].rows_where(
            select="id, suite, created, last_change, settings, metrics", order_by="id"
        )
        names = ("settings", "metrics")
        return [{**row, **{name: decoded(f"evaluation {row['id']}", row[name]) for name in names}} for row in rows]

    def current_evaluations(self) -> dict[str, dict[str, Any]]:
        """Metrics of each suite's newest evaluation, of those that scored the edits now active."""
        rows = self.db["evaluations"].rows_where("last_change = ?", [self.last_change()], order_by="id")
        return {row["suite"]: decoded(f"evaluation {row['id']}", row["metrics"]) for row in rows}

    def changes(self) -> list[dict[str, Any]]:
        """The events that `last_change` counts, and the one that made the project, in order."""
        rows = self.db["events"].rows_where(f"kind in ('init', {CHANGES})", order_by="id")
        events = [{**row, "detail": decoded(f"event {row['id']}", row["detail"])} for row in rows]
        return events

    def last_change(self) -> int:
        """Id of the newest event that made, failed to make or took back an edit, or moved theta; 0 if there
        is none."""
        row = self.db.execute(f"select id from events where kind in ({CHANGES}) order by id desc limit 1").fetchone()
        return int(row[0]) if row else 0

    def events(self) -> list[dict[str, Any]]:
        """Every event, its `detail` decoded, in order."""
        events = list(self.db["events"].rows_where(order_by="id"))
        for event in events:
            if not all(isinstance(event[name], str) for name in ("created", "kind", "detail", "hash")):
                raise unreadable(f"event {event['id']}", "it holds something else than text")
        return [{**event, "detail": decoded(f"event {event['id']}", event["detail"])} for event in events]

    def copy_to(self, path: Path) -> None:
        """Copy the ledger as it is at one moment, by SQLite's backup API."""
        with closing(sqlite3.connect(path)) as copy:
            self._connection.backup(copy)

    def made(self, edit_id: int) -> dict[str, Any]:
        """Who made an edit, by which version, with which recipe and base."""
        rows = list(self.db["events"].rows_where("edit = ? and kind like 'edit%'", [edit_id], limit=1))
        detail = decoded(f"event {rows[0]['id']}", rows[0]["detail"]) if rows else {}
        return {name: detail.get(name) for name in (*SIGNED, "recipe", "base")}

    def has_event(self, head: str) -> bool:
        """Whether an event of this hash is in the log."""
        return self.db.execute("select 1 from events where hash = ?", [head]).fetchone() is not None

    def head(self) -> str:
        """The newest event's hash: it stands for all that was done so far."""
        row = self.db.execute("select hash from events order by id desc limit 1").fetchone()
        return str(row[0]) if row else ""

    def _append_event(self, kind: str, edit: int | None, detail: dict[str, Any]) -> None:
        if self._author is None:
            self._author = author_of(None)
        signed = {**detail, **self.noted, "author": self._author, "version": __version__}
        event = {"created": now(), "kind": kind, "edit": edit, "detail": json.dumps(signed, sort_keys=True)}
        self.db["events"].insert({**event, "hash": event_hash(self.head(), event)})


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
