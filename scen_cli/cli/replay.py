"""`scen edit LOG`: what another project's log tells, done again."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from scen_cli.cli.interrupt import interruptible
from scen_cli.cli.output import Output
from scen_cli.errors import DamageFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scen_cli.data.log_events import LogEvent
    from scen_cli.editing.edit_run import Outcome
    from scen_cli.editing.editor import Editor


def log_or_records(file: str | None) -> tuple[list[LogEvent], Iterator[tuple[int, object]] | None]:
    """The entries of a project's log, if the file is one; else its records."""
    from scen_cli.data.log_events import split_log

    return split_log(file) if file is not None else ([], None)


def replay(editor: Editor, events: list[LogEvent], out: Output) -> list[Outcome]:
    """Do again what a log tells; returns what became of each edit."""
    from scen_cli.editing.replay_log import differences
    from scen_cli.editing.replay_log import replay as make

    for text in differences(editor, events):
        out.warn(f"answers may differ from the log's: {text}")
    outcomes: list[Outcome] = []
    edits = sum(event.record is not None for event in events)
    with editor.project.writing():
        try:
            with out.progress(edits, "editing") as tell, interruptible(out.note) as check:
                for made in make(editor, events):
                    check()
                    outcomes += made
                    for outcome in made:
                        tell(str(outcome), "")
        finally:
            with suppress(DamageFound):
                editor.project.merge()
    return outcomes
