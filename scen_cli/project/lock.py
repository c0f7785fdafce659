"""One writer at a time. The operating system releases the lock when the process that holds it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from scen_cli.errors import ProjectLocked
from scen_cli.project.disk import write_file

LOCK = "scen.lock"
HOLDER = "scen.lock.holder"  # names the process that holds the lock, for the message to others
MIN_WAIT = 1.0  # seconds to wait for the lock at least: another command may be about to end


@contextmanager
def locked(folder: Path, wait: float = MIN_WAIT) -> Iterator[None]:
    """Hold a project's lock. Waits up to `wait` seconds for it, then raises `ProjectLocked`, which names the holder."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=max(wait, MIN_WAIT))
    except Timeout as error:
        raise ProjectLocked(
            f"{_holder(folder)} is writing to this project",
            hint="wait for it to end, then run again; `--wait SECONDS` waits for it",
        ) from error
    try:
        with suppress(OSError):  # `scen gc` must be able to make room on a full disk
            write_file(folder / HOLDER, f"process {os.getpid()}\n".encode())
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether a process holds a project's lock right now."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # the folder is read-only: nobody writes to it
        return False
    lock.release()
    return False


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text(encoding="utf-8").strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
