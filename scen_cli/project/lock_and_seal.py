"""One writer at a time, and the seal that each writer leaves.

The operating system releases the lock when the process that holds it ends. The seal is the sha256 of `scen.db` as the
last writer left it, and the newest hash of its log. SQLite keeps no sums of its pages. The seal also records the
file's change counter, which every commit raises: so a seal that is out of date (its writer was killed) is not confused
with a ledger that was changed without SQLite. A ledger whose log lacks the sealed hash is an older copy, or another
ledger: the files may be ahead of its rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from scen_cli.errors import ProjectLocked, UsageError
from scen_cli.project.disk import write_durably, write_file
from scen_cli.project.ledger import Ledger
from scen_cli.project.tensor_files import sha256_of

LOCK = "scen.lock"
HOLDER = "scen.lock.holder"  # names the process that holds the lock, for the message to others
MIN_WAIT = 1.0  # seconds to wait for the lock at least: another command may be about to end
LEDGER = "scen.db"
SEAL = "scen.db.sha256"
FIELDS = {"counter", "sha256", "head"}
MAX_BYTES = 1000
NOT_SEALED = "is not the ledger that was sealed, nor a later state of it: an older copy?"


@contextmanager
def locked(folder: Path, wait: float = MIN_WAIT) -> Iterator[None]:
    """Hold a project's lock. Waits up to `wait` seconds for it, then raises `ProjectLocked`, which names the holder."""
    _refuse_links(folder)
    _check_access(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=max(wait, MIN_WAIT))
    except Timeout as error:
        hint = "wait for it to end, then run again; `--wait SECONDS` waits for it"
        raise ProjectLocked(f"{_holder(folder)} is writing to this project", hint=hint) from error
    try:
        with suppress(OSError):  # `scen gc` must be able to make room on a full disk
            write_file(folder / HOLDER, f"process {os.getpid()}\n".encode())
        yield
    finally:
        lock.release()


def _refuse_links(folder: Path) -> None:
    """Raise `UsageError` if a write would change a file outside the project.

    A copy by hard links (`cp -al`) shares its ledger with the original.
    """
    if (folder / LOCK).is_symlink():
        raise UsageError(f"`{folder / LOCK}` is a link to another file", hint="remove it: scen makes its own")
    ledger = folder / LEDGER
    if ledger.exists() and ledger.stat().st_nlink > 1:
        raise UsageError(
            f"`{ledger}` is shared with another folder by a hard link: a change would be made in both",
            hint=f"in the folder that you want to change: `cp {LEDGER} copy && mv copy {LEDGER}`",
        )


def _check_access(folder: Path) -> None:
    """Raise `UsageError` if this user may not change the project: told before anything is trained."""
    for path in (folder, folder / LOCK, folder / LEDGER, folder / "edits"):
        if path.exists() and not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise UsageError(
                f"you may not write to `{path}`: nothing was changed",
                hint=f"ask its owner for the right to write: `chmod -R g+w {folder}` gives it to the folder's group",
            )


def in_use(folder: Path) -> bool:
    """Whether a process holds a project's lock right now."""
    if (folder / LOCK).is_symlink():  # no lock of scen's; opening it could change the file that it leads to
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # the folder is read-only: nobody writes to it
        return False


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text(encoding="utf-8").strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def seal(folder: Path, ledger: Ledger, name: str = LEDGER) -> None:
    """Write the seal if the ledger has changed since. Call with the project's lock and no open transaction."""
    counter, sealed = _counter(folder / name), _read_seal(folder)
    if sealed.get("counter") != counter or not ledger.has_event(str(sealed.get("head"))):
        content = {"counter": counter, "sha256": sha256_of(folder / name), "head": ledger.head()}
        write_durably(folder / SEAL, json.dumps(content).encode())


def rolled_back(folder: Path, ledger: Ledger) -> bool:
    """Whether the ledger is neither the sealed one nor a later state of it."""
    head = _read_seal(folder).get("head")
    return bool(head) and not ledger.has_event(str(head))


def seal_problem(folder: Path) -> str | None:
    """What is wrong with the seal, if anything is."""
    sealed = _read_seal(folder)
    if not sealed:
        return "is missing or cannot be read"
    if sealed["counter"] != _counter(folder / LEDGER):
        return "is of another state of the ledger: the last writer was stopped"
    if sealed["sha256"] != sha256_of(folder / LEDGER):
        return f"is not that of `{LEDGER}`: bytes have changed without a commit"
    return None


def _read_seal(folder: Path) -> dict[str, Any]:
    """The seal; empty if there is none or it is malformed."""
    path = folder / SEAL
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
            return {}
        content = path.read_bytes()
        sealed = json.loads(content)
    except (OSError, ValueError):
        return {}
    well_formed = isinstance(sealed, dict) and set(sealed) == FIELDS and json.dumps(sealed).encode() == content
    return sealed if well_formed else {}


def _counter(ledger: Path) -> int:
    with ledger.open("rb") as file:
        return int.from_bytes(file.read(28)[24:], "big")
