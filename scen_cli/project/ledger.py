"""The ledger: the SQLite database that records which edits are active and how each was made.

Every change goes through `Ledger.change()`: one transaction, which also appends to the event log. A ledger from
elsewhere is not trusted: it may have no triggers or views, and its rows are checked as they are read.
"""

from __future__ import annotations

import getpass
import json
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from scen_cli._version import __version__
from scen_cli.errors import VERIFY_HINT, DamageFound, ScenError, UsageError
from scen_cli.project.disk import Connection, connect
from scen_cli.project.event_log import digest_of_row, digest_of_rows, event_hash
from scen_cli.project.ledger_queries import LedgerQueries
from scen_cli.project.ledger_rows import Threshold, unreadable
from scen_cli.project.schema import migrations, refuse_other_tables, refuse_triggers_and_views

BUSY_SECONDS = 30.0  # how long to wait for another process's transaction at least


class _OfThread(threading.local):
    """This thread's connection to a ledger. A transaction belongs to its connection: threads that shared one would see
    each other's uncommitted rows, and the end of one's reading would undo another's change."""

    def __init__(self, path: Path, identity: tuple[int, int] | None, busy_seconds: float) -> None:
        self.connection = connect(path, busy_seconds)
        if _identity(path) != identity:  # another thread opened it earlier
            raise ScenError(f"`{path}` is not the file that was opened: the project was moved or replaced")
        self.db = Database(self.connection, execute_plugins=False)


class Ledger(LedgerQueries):
    """Reads and changes a project's `scen.db`. Several threads may use it at once."""

    def __init__(self, path: Path, author: str | None = None, wait: float = 0.0) -> None:
        """Open the ledger and apply pending migrations.

        Args:
            path: The database file.
            author: Who makes the changes; None for git's user or the login.
            wait: Seconds to wait for other processes, if more than `BUSY_SECONDS`.

        Raises:
            DamageFound: The file is not a ledger that scen wrote.
            UsageError: A newer scen wrote it.
            ScenError: A migration is pending or a change was interrupted, and the folder is read-only.
        """
        self._author, self._path, self._identity = author, path, _identity(path)
        self.event_notes: dict[str, Any] = {}  # added to the detail of every event while it is set
        try:
            self._of_thread = _OfThread(path, self._identity, max(BUSY_SECONDS, wait))
            refuse_triggers_and_views(self.db)
            self.migrated = self._migrate()
            refuse_other_tables(self.db)
        except sqlite3.OperationalError as error:
            if "no such" in str(error) or "duplicate" in str(error):
                raise unreadable("its tables", error) from error
            if "readonly" in str(error):
                interrupted = path.with_name(f"{path.name}-journal").exists()
                raise ScenError(
                    "a change to this project was interrupted and must be undone first, and its folder is read-only"
                    if interrupted
                    else "this project must be migrated to this version's format, and its folder is read-only",
                    hint="open the project, or a copy of it, in a folder that you can write to: `scen status` does it",
                ) from error
            raise  # locked, or a full disk: the file is not damaged
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # SQLite quotes damaged text in its messages
            raise DamageFound(f"`{path.name}` is not a readable ledger: {error}", hint=VERIFY_HINT) from error

    def _migrate(self) -> bool:
        """Apply all pending migrations in one transaction. Returns whether there were any.

        If two processes open an old project, one applies them; the other waits and finds none.
        """
        known = {migration.name for migration in migrations.pending(Database(memory=True))}
        if newer := sorted({migration.name for migration in migrations.applied(self.db)} - known):
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
                self._append_event("migrate", None, {"to": pending, **self._migrated_rows()})
            self._connection.execute("COMMIT")
        except BaseException:
            self.db.rollback()
            raise
        return bool(pending)

    def _migrated_rows(self) -> dict[str, Any]:
        """What a migration may have changed in the rows that earlier events recorded."""
        return {
            "edits": {str(row["id"]): digest_of_row(row) for row in self.db["edits"].rows},
            "thresholds": list(self.db["thresholds"].rows_where(order_by="id")),
            "evaluations": {str(row["id"]): digest_of_rows([row]) for row in self.db["evaluations"].rows},
        }

    @property
    def db(self) -> Database:
        return self._of_thread.db

    @property
    def _connection(self) -> Connection:
        return self._of_thread.connection

    @property
    def in_place(self) -> bool:
        """Whether its path still leads to the opened file: not after the project was moved, removed or replaced."""
        return _identity(self._path) == self._identity

    def close(self) -> None:
        """Close this thread's connection; those of other threads close when these end."""
        self._connection.close()

    @contextmanager
    def change(self, kind: str, edit: int | None = None, **detail: Any) -> Iterator[dict[str, Any]]:
        """One transaction. The event is appended last, so the log has it if and only if the change is made.

        Args:
            kind: The kind of event.
            edit: The edit that the event is about.
            **detail: What the event records. The context yields it, for values that are known only later.
        """
        with self.db.atomic():
            yield detail
            self._append_event(kind, edit, detail)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A transaction in which all reads see one state of the ledger. Writers wait for its end: keep it short."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.begin_reading()
        try:
            yield
        finally:
            self.db.rollback()

    def set_threshold(self, threshold: Threshold) -> dict[str, Any]:
        """Append to the threshold's history. Call inside `change()`. Returns what the event must record."""
        self.db["thresholds"].insert(vars(threshold))
        return {"threshold": vars(threshold)}

    def copy_to(self, path: Path) -> None:
        """Copy one state of the ledger with SQLite's backup API."""
        with closing(sqlite3.connect(path)) as copy:
            self._connection.backup(copy)

    def _append_event(self, kind: str, edit: int | None, detail: dict[str, Any]) -> None:
        if self._author is None:
            self._author = _git_user() or _login()
        signed = {**detail, **self.event_notes, "author": self._author, "version": __version__}
        event = {"created": now(), "kind": kind, "edit": edit, "detail": json.dumps(signed, sort_keys=True)}
        self.db["events"].insert({**event, "hash": event_hash(self.head(), event)})


def _identity(path: Path) -> tuple[int, int] | None:
    """What no other file has while this one is open; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _git_user() -> str:
    """Git's user; empty if there is none."""
    git = shutil.which("git")
    commands = [[git, "config", "--get", key] for key in ("user.name", "user.email")] if git else []
    try:
        outputs = [subprocess.run(command, capture_output=True, timeout=5, check=False).stdout for command in commands]
    except (OSError, subprocess.SubprocessError):
        return ""
    name, email = [output.decode("utf-8", "replace").strip() for output in outputs] or ("", "")
    return f"{name} <{email}>" if name and email else name


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"
