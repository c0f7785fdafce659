"""Every step that changes something on the disk of a project, and nothing else.

A file is written under a temporary name, flushed to the disk, and then renamed: a file under its real name is always
complete. The ledger is changed after the files that it names are written.

`before_step` is called before each step, with the step and its path. It does nothing. Tests replace it to kill the
process there, or to raise the error of a full or broken disk (`tests/faults/`).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scen_cli.errors import DamageFound

JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # at a journal's end, after the name of a super-journal
READS = {"SELECT", "PRAGMA", "ROLLBACK", "EXPLAIN"}  # SQL statements that change no file: not a step


def before_step(what: str, where: Path) -> None:
    """Called before each step: `create`, `write`, `fsync`, `rename`, `fsync folder`, `remove`, `make folder`, or the
    first word of an SQL statement that writes."""


def write_durably(path: Path, content: bytes) -> None:
    """Temporary file, fsync, rename, fsync of the folder. If a step fails, the previous content stays."""
    make_folder(path.parent)
    temporary = path.with_name(path.name + ".tmp")
    try:
        write_file(temporary, content)
        rename(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: bytes) -> None:
    """Create a file and flush it to the disk. First remove what a crash left under this name, even a link."""
    before_step("create", path)
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        before_step("write", path)
        file.write(content)
        file.flush()
        before_step("fsync", path)
        os.fsync(file.fileno())


def rename(old: Path, new: Path) -> None:
    """Give a file its real name, and flush the name to the disk."""
    before_step("rename", new)
    old.replace(new)
    sync_folder(new.parent)


def remove(path: Path) -> None:
    """Remove a file or folder that nothing names."""
    before_step("remove", path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    if not folder.is_dir():
        before_step("make folder", folder)
        folder.mkdir(parents=True, exist_ok=True)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are empty, in this order."""
    for folder in folders:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    before_step("fsync folder", folder)
    if os.name == "nt":  # Windows cannot fsync a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Connection(sqlite3.Connection):
    """A connection to a ledger. Each statement that writes is a step."""

    path: Path

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        word = sql.split(None, 1)[0].upper().rstrip(";")
        if word not in READS:
            before_step(word, self.path)
        return super().execute(sql, *parameters)

    def begin_reading(self) -> None:
        """Begin a transaction that only reads: not a step."""
        super().execute("BEGIN")


def refuse_foreign_journal(path: Path) -> None:
    """Raise `DamageFound` if the journal beside a ledger is not a file, or names another file.

    SQLite would remove the named file on recovery. Only transactions over several databases name one; scen has none.
    """
    for suffix in ("-journal", "-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        with suppress(FileNotFoundError):  # there is none, or its writer has just ended
            if not stat.S_ISREG(beside.lstat().st_mode):
                raise DamageFound(f"`{beside.name}` is not a file: SQLite would write to it, or wait for it")
            with beside.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - len(JOURNAL_MAGIC)))
                if suffix == "-journal" and file.read() == JOURNAL_MAGIC:
                    raise DamageFound(
                        f"`{beside.name}` names another file, which SQLite would remove: scen did not write it"
                    )


def connect(path: Path, busy_seconds: float) -> Connection:
    """Open a ledger. Statements wait up to `busy_seconds` for another process's transaction.

    Rollback journal and `synchronous=FULL`: SQLite 3.7.0 to 3.51.2, which many systems ship, can corrupt a write-ahead
    log on reset. `trusted_schema=OFF`: SQL that the ledger itself defines runs no unsafe function.
    """
    refuse_foreign_journal(path)
    connection = sqlite3.connect(path, timeout=busy_seconds, check_same_thread=False, factory=Connection)
    connection.path = path
    for pragma in ("journal_mode=DELETE", "synchronous=FULL", "trusted_schema=OFF", "cell_size_check=ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection
