"""One writer at a time. The lock is the operating system's: it goes with the process that held it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from scen_cli.errors import ProjectLocked
from scen_cli.project.disk import write_file

LOCK = "scen.lock"
HOLDER = "scen.lock.holder"  # who has the lock, for the message to who has not
AT_LEAST = 1.0  # seconds to wait for a lock: another command may be about to end


@contextmanager
def locked(folder: Path, wait: float = AT_LEAST) -> Iterator[None]:
    """Hold a project's lock, waiting so many seconds for it. Raises `ProjectLocked`, naming the holder."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=wait if wait > AT_LEAST else AT_LEAST)
    except Timeout as error:
        raise ProjectLocked(
            f"{_holder(folder)} is writing to this project",
            hint="wait for it to end, then run again; `--wait SECONDS` waits for it",
        ) from error
    try:
        with suppress(OSError):  # a full disk must not keep anybody from making room on it
            write_file(folder / HOLDER, f"process {os.getpid()}\n".encode())
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether somebody holds a project's lock right now."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that may only be read: nobody writes to it either
        return False
    lock.release()
    return False


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text(encoding="utf-8").strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
