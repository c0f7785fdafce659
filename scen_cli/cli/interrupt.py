"""Ctrl-C during an edit run: the current edit is finished first, a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scen_cli.errors import Interrupted


@contextmanager
def interruptible(note: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Yields `check()`, to be called between edits: it raises `Interrupted` if Ctrl-C was pressed.

    Python drops a KeyboardInterrupt that is raised inside a finaliser; a flag is not lost.
    """
    pressed = threading.Event()

    def on_signal(_number: int, _frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        note("finishing the current edit; press Ctrl-C again to stop at once")

    def check() -> None:
        if pressed.is_set():
            raise Interrupted(
                "interrupted: every edit committed so far is kept", hint="run the same command again to continue"
            )

    if threading.current_thread() is not threading.main_thread():  # only the main thread can set a handler
        yield check
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
