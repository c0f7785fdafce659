"""Limits how many log lines clients can cause."""

from __future__ import annotations

import logging
import time
from collections import Counter

LINES, SECONDS = 10, 60.0


class LogLimit(logging.Filter):
    """Lets the first `LINES` lines of each message pass, and counts anew every `SECONDS`."""

    def __init__(self) -> None:
        super().__init__()
        self._start, self._lines = time.monotonic(), Counter[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        if time.monotonic() - self._start > SECONDS:
            self._start, self._lines = time.monotonic(), Counter()
        message = record.msg
        self._lines[message] += 1
        if self._lines[message] == LINES:
            record.msg = f"{message} (further lines like this are left out for up to {SECONDS:g} seconds)"
        return self._lines[message] <= LINES
