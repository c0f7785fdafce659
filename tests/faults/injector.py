"""A fault at step n of those that touch a project's disk, in a forked child, which need not import anything."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

from scen_cli.cli.failures import explain
from scen_cli.project import disk

KILL, POWER = "SIGKILL", "power cut"
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}
FILE_STEPS = {"create", "write", "fsync", "rename", "fsync folder", "remove", "make folder"}
OF_SQLITE = {
    "ENOSPC": "database or disk is full",
    "EIO": "disk I/O error",
    "EACCES": "attempt to write a readonly database",
}
DONE, UNEXPLAINED = 0, 99


class Injector:
    """Replaces `disk.before_step`: records the steps, and makes step n fail."""

    def __init__(self, nth: int, kind: str) -> None:
        self.nth, self.kind, self.steps = nth, kind, []

    def __call__(self, what: str, where: Path) -> None:
        self.steps.append((what, where.name))
        if len(self.steps) == self.nth:
            self.strike(what, where)

    def strike(self, what: str, where: Path) -> None:
        if self.kind == POWER:
            lose_what_was_not_flushed(what, where)
        if self.kind in (KILL, POWER):
            os.kill(os.getpid(), signal.SIGKILL)
        if what in FILE_STEPS:
            raise OSError(ERRORS[self.kind], os.strerror(ERRORS[self.kind]), str(where))
        raise sqlite3.OperationalError(OF_SQLITE[self.kind])


def lose_what_was_not_flushed(what: str, where: Path) -> None:
    """What a power cut may do in addition to a kill: it loses half of an unflushed file, and an unflushed name.

    Only the newest name of a folder can be lost, because every rename is flushed.
    """
    if what == "fsync":
        os.truncate(where, where.stat().st_size // 2)
    elif what == "fsync folder":
        newest = max((path for path in where.iterdir() if path.is_file()), key=lambda path: path.stat().st_ctime_ns)
        if newest.suffix == ".safetensors" and newest.name != "merged.safetensors":
            newest.rename(newest.with_name(newest.name + ".tmp"))


def in_child(act: Callable[[], None], before_step: Callable[[str, Path], None] | None = None) -> int:
    """Run `act` in a forked child. Returns the exit code that `scen` would have, or the negative signal."""
    child = os.fork()
    if child == 0:
        code = UNEXPLAINED
        try:
            if before_step is not None:
                disk.before_step = before_step
            act()
            code = DONE
        except BaseException as error:
            explained = explain(error)
            code = explained[2] if explained else UNEXPLAINED
            if not explained:
                import traceback

                traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def steps_of(act: Callable[[], None], file: Path) -> list[tuple[str, str]]:
    """The steps of an act that succeeds, in order. It runs in a child, which writes them to `file`."""
    counter = Injector(0, "")

    def act_and_record() -> None:
        act()
        file.write_text("\n".join(f"{what}\t{where}" for what, where in counter.steps), encoding="utf-8")

    assert in_child(act_and_record, counter) == DONE
    return [tuple(line.split("\t")) for line in file.read_text(encoding="utf-8").splitlines()]
