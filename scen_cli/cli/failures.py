"""Exceptions that a user can cause: their messages, the next command to try, and the exit codes."""

from __future__ import annotations

from scen_cli.errors import ScenError


def explain(error: BaseException) -> tuple[str, str, int] | None:
    """(message, hint, exit code) of an exception that a user can cause; None for a defect of scen itself."""
    import errno
    import sqlite3  # not needed by `scen --help`

    if isinstance(error, ScenError):
        return str(error), error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: everything committed so far is kept", "", 130
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        hint = "wait for it to end, then run again; `--wait SECONDS` waits longer"
        return "another process kept the ledger busy, by reading or writing: nothing was changed by this step", hint, 11
    if isinstance(error, sqlite3.OperationalError):
        return f"the ledger cannot be used: {error}", "is the folder writable and the disk not full?", 1
    if isinstance(error, sqlite3.DatabaseError):
        return f"the ledger is damaged: {error}", "restore `scen.db` from a copy", 12
    if isinstance(error, OverflowError) and "SQLite" in str(error):
        return "there is no such number: it is too large", "`scen status` shows the edits", 2
    if isinstance(error, UnicodeEncodeError):
        return f"the output cannot show {error.object[error.start]!r}", "set `PYTHONIOENCODING=utf-8`", 1
    if isinstance(error, BrokenPipeError):  # `scen status | head`: nobody reads on
        return None
    if isinstance(error, OSError):
        where = f": `{error.filename}`" if error.filename else ""
        hint = "is it there, writable, and the disk not full?"
        if error.errno == errno.ENAMETOOLONG:
            hint = "choose a shorter name"
        return f"{error.strerror or error}{where}", hint, 1
    if type(error).__name__ == "OutOfMemoryError":  # torch's own, recognised without importing torch
        return f"out of memory: {str(error).splitlines()[0]}", "try `--device cpu`, or a base in a smaller dtype", 1
    return None
