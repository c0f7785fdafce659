"""An edit run of a command: plan, train and commit with progress, until the end or Ctrl-C."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scen_cli.cli.interrupt import interruptible
from scen_cli.cli.output import Output
from scen_cli.errors import SomeEditsFailed, UsageError

if TYPE_CHECKING:
    from scen_cli.data.entries import Entry
    from scen_cli.data.log_events import LogEvent
    from scen_cli.data.suites import Suite
    from scen_cli.editing.edit_plan import EditPlan, Outcome
    from scen_cli.editing.editor import Editor
    from scen_cli.editing.project_editor import ProjectEditor
    from scen_cli.experts.fit_records import FitAll


def run_edits(
    editor: ProjectEditor,
    entries: list[Entry],
    strict: bool,
    out: Output,
    conflicts: str = "refuse",
    reason: str = "",
    batch: int = 1,
    fit_all: FitAll | None = None,
) -> list[Outcome]:
    """Edit records that are no edits yet. Call inside `project.writing()`.

    Under `strict`, nothing is edited if a record is known to fail, and the run stops at the first that does.
    """
    with out.counting("steps of planning") as progress:
        plan = editor.plan(entries, conflicts, reason, progress)
    if strict:
        _refuse_known_failures(plan)
    for outcome in filter(None, plan.outcomes):
        (out.warn if outcome.needs_attention else out.note)(str(outcome))
    started, trained = time.perf_counter(), 0
    with out.progress(plan.outcomes.count(None), "editing") as progress, interruptible(out.note) as check:
        check()
        for outcomes in editor.train(plan, batch, fit_all):
            for outcome in outcomes.values():
                trained += 1
                if outcome.needs_attention:
                    out.warn(str(outcome))
                pace = f"{(time.perf_counter() - started) / trained:.2f} s/edit"
                progress("" if outcome.needs_attention else str(outcome), pace)
            if strict and any(outcome.outcome == "failed" for outcome in outcomes.values()):
                break
            if None in plan.outcomes:  # there is more to train
                check()
    done = [outcome for outcome in plan.outcomes if outcome is not None]
    if len(done) < len(plan.outcomes):
        left = len(plan.outcomes) - len(done)
        out.warn(f"stopped with {left} records left (`--keep-going` continues past failures)")
    return done


def _refuse_known_failures(plan: EditPlan) -> None:
    """Raise for the first record that is known to fail."""
    failures = [outcome for outcome in plan.outcomes if outcome is not None and outcome.outcome == "failed"]
    if failures:
        kind = SomeEditsFailed if failures[0].edit else UsageError  # tried before, or never possible
        raise kind(
            f"{failures[0].where}: {failures[0].reason}\nnothing was edited",
            hint="correct the record, or skip such records with `--keep-going`"
            + ("; `--conflicts supersede` or `--conflicts keep` if you mean it" if plan.conflicts else ""),
        )


def edit_suite(editor: Editor, suite: Suite, out: Output) -> list[Outcome]:
    """Edit every record of a suite; failures do not stop the run."""
    with editor.project.writing():
        return run_edits(editor, suite_entries(suite), strict=False, out=out)


def suite_entries(suite: Suite) -> list[Entry]:
    from scen_cli.data.entries import Entry
    from scen_cli.data.records import SourceLine

    return [Entry(SourceLine(f"suite {suite.name}", n), record) for n, record in enumerate(suite.edits, start=1)]


def replay_log(editor: Editor, events: list[LogEvent], out: Output) -> list[Outcome]:
    """Replay another project's log."""
    from scen_cli.editing.replay_log import differences, replay

    for text in differences(editor, events):
        out.warn(f"answers may differ from the logged project's: {text}")
    outcomes: list[Outcome] = []
    edits = sum(event.record is not None for event in events)
    with (
        editor.project.writing(),
        out.progress(edits, "editing") as progress,
        interruptible(out.note) as check,
    ):
        for replayed in replay(editor, events):
            check()
            outcomes += replayed
            for outcome in replayed:
                progress(str(outcome), "")
    return outcomes
