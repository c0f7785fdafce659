"""Every error scen raises on purpose, and the exit code each one ends a command with.

ScenError            1   something failed
├── UsageError       2   the command, a file or a value in it is wrong
├── SomeEditsFailed  3   the rest was done and kept
├── GateNotMet       3   a figure is not what `--gate` asks for
├── NoProject       10   no project in this folder
├── ProjectLocked   11   another process is writing to the project
├── DamageFound     12   files and ledger disagree
└── Interrupted    130   Ctrl-C between two edits
"""

from __future__ import annotations

VERIFY_HINT = "run `scen verify` for details; restore the project from a backup"


class ScenError(Exception):
    """A message for the user: what is wrong and where; `hint` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(ScenError):
    exit_code = 2


class SomeEditsFailed(ScenError):
    exit_code = 3


class GateNotMet(ScenError):
    exit_code = 3


class NoProject(ScenError):
    exit_code = 10


class ProjectLocked(ScenError):
    exit_code = 11


class DamageFound(ScenError):
    exit_code = 12


class Quarantined(RuntimeWarning):
    """An active edit cannot answer, because its file is damaged: the base answers for it."""


class Interrupted(ScenError):
    exit_code = 130
