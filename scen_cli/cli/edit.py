"""`scen edit`: train each record of a file in order, and commit each."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.interrupt import interruptible
from scen_cli.cli.loaders import HERE, Author, Device, Dir, Wait, open_editor, open_method_editor, open_project
from scen_cli.cli.output import Json, Output, Quiet
from scen_cli.cli.replay import log_or_records, replay
from scen_cli.errors import DamageFound, SomeEditsFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scen_cli.baselines.method_editor import MethodEditor
    from scen_cli.data.entries import Entry
    from scen_cli.data.suites import Suite
    from scen_cli.editing.edit_run import Outcome, Plan
    from scen_cli.editing.editor import Editor
    from scen_cli.experts.fit_records import FitAll
    from scen_cli.project.project import Project


def edit(
    file: Annotated[str | None, typer.Argument(help="JSONL or JSON of records; `-` is standard input.")] = None,
    prompt: Annotated[str | None, typer.Option(help="One edit: its prompt (with --target).")] = None,
    target: Annotated[str | None, typer.Option(help="One edit: its target (with --prompt).")] = None,
    suite: Annotated[str | None, typer.Option(help="Edit a suite's facts: demo, zsre with --data, or a file.")] = None,
    data: Annotated[Path | None, typer.Option(help="The suite's data file.")] = None,
    first: Annotated[int | None, typer.Option(min=1, help="Only the first N records.")] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict/--keep-going",
            help="Stop at the first bad record, before anything is trained; or skip bad ones and go on.",
        ),
    ] = True,
    conflicts: Annotated[
        str,
        typer.Option(help="A record that contradicts an edit in other words: refuse, supersede it, or keep both."),
    ] = "refuse",
    reason: Annotated[str, typer.Option(help="Why both are kept: goes into the ledger.")] = "",
    train_rephrases: Annotated[
        int, typer.Option(min=0, help="Learn each record's first N rephrases too; they are then not scored.")
    ] = 0,
    batch: Annotated[
        int, typer.Option(min=1, help="Train so many experts at once: faster on a GPU, and the same edits.")
    ] = 1,
    workers: Annotated[
        int, typer.Option(min=1, help="Train in so many processes, one for each GPU: the same edits.")
    ] = 1,
    engine: Annotated[str, typer.Option(help="With --workers: processes, or ray (a cluster's, by RAY_ADDRESS).")] = (
        "processes"
    ),
    author: Author = None,
    wait: Wait = 0,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Correct facts: each record gets its own expert and indexing neuron, and is committed by itself.

    Run again after an interruption, the same command goes on where it
    stopped.

    Example: scen edit edits.jsonl

    Example: scen edit --prompt "Where was Ada born?" --target Riga
    """
    out = Output(as_json, quiet)
    from scen_cli.data.entries import bad_lines

    _check_policy(conflicts, reason)
    if engine not in ("processes", "ray"):
        raise UsageError(f"`--engine {engine}` is not known", hint="one of: processes, ray")
    if [file is not None, suite is not None, prompt is not None or target is not None].count(True) != 1:
        raise UsageError("give one of: a file, `--suite`, or `--prompt` with `--target`", hint="`scen edit --help`")
    elsewhere = workers > 1 or engine != "processes"
    events, items = log_or_records(file)
    project = open_project(dir, author, wait)
    if project.method and (events or train_rephrases or conflicts != "refuse" or batch > 1 or elsewhere):
        raise UsageError(f"a project that edits by `{project.method}` takes records as they are, in its own batches")
    if events:
        if first or train_rephrases or conflicts != "refuse" or batch > 1 or elsewhere:
            raise UsageError("a log is replayed as it is: `--first`, `--train-rephrases` and the like have no use")
        if any(event.kind == "init" and event.detail.get("method") for event in events):
            raise UsageError("this is the log of a project that edits by another method: it cannot be replayed")
        editor = open_editor(dir, device, out, author, wait)
        _tell(editor.project, replay(editor, events, out), out)
        return
    asked = _entries(file, items, prompt, target, suite, data)[:first]
    entries = [_learning(entry, train_rephrases) for entry in asked]
    bad = [entry for entry in entries if entry.record is None]
    if bad and strict:
        raise UsageError(
            bad_lines(bad) + "\nnothing was edited",
            hint="mend the file, or skip such records with `--keep-going`",
        )
    if project.method:
        _tell(project, edit_by_method(open_method_editor(project, device, out), entries, strict, out), out)
        return
    editor = open_editor(dir, device, out, author, wait)
    with editor.project.writing(), _elsewhere(editor, workers, engine, device) as fit_all:
        outcomes = _run(editor, entries, strict, out, conflicts, reason, batch, fit_all)
    _tell(editor.project, outcomes, out)


def _tell(project: Project, outcomes: list[Outcome], out: Output) -> None:
    """The result of a run."""
    counts = {kind: sum(outcome.outcome == kind for outcome in outcomes) for kind in ("edited", "skipped", "failed")}
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    active = len(project.ledger.active_prompts())
    records = [asdict(outcome) for outcome in outcomes]
    out.result({**counts, "active": active, "edits": records}, f"{summary}; {active} active edits")
    if counts["failed"]:
        raise SomeEditsFailed(
            f"{counts['failed']} records were not edited",
            hint=_what_may_help(outcomes),
        )


def _check_policy(conflicts: str, reason: str) -> None:
    from scen_cli.editing.conflicts import POLICIES

    if conflicts not in POLICIES:
        raise UsageError(f"`--conflicts {conflicts}` is not known", hint=f"one of: {', '.join(POLICIES)}")
    if (conflicts == "keep") != bool(reason.strip()):
        raise UsageError("`--conflicts keep` and `--reason` go together", hint="say why both edits are to stand")


def _learning(entry: Entry, count: int) -> Entry:
    """The entry with its first rephrases among those that are learned, and no longer scored."""
    if entry.record is None or not count:
        return entry
    record = entry.record
    more = (*record.train_rephrases, *record.rephrases[:count])
    return replace(
        entry, record=record.model_copy(update={"train_rephrases": more, "rephrases": record.rephrases[count:]})
    )


def _what_may_help(outcomes: list[Outcome]) -> str:
    if not any(outcome.outcome == "failed" and outcome.edit for outcome in outcomes):
        return "the reasons are above: mend these records"
    return "more steps may learn them; a project's settings are fixed: `scen init --dir NEW --set expert_steps=20`"


def _elsewhere(editor: Editor, workers: int, engine: str, device: str) -> AbstractContextManager[FitAll | None]:
    """Where experts are trained: in other processes, or (None) here."""
    if workers > 1 and device == "auto" and editor.project.settings.get("device_map"):
        raise UsageError("a base that is spread over the devices leaves none to other workers", hint="`--workers 1`")
    if engine == "ray":
        from scen_cli.experts.ray_pool import RayPool

        return RayPool(editor.project.settings, workers, device)
    if workers == 1:
        return nullcontext()
    from scen_cli.experts.process_pool import WorkerPool

    return WorkerPool(editor.project.settings, workers, device)


def train_all(editor: Editor, suite: Suite, out: Output) -> list[Outcome]:
    """Edit every record of a suite, going on past those that fail; returns an outcome for each."""
    with editor.project.writing():
        return _run(editor, _suite_entries(suite), strict=False, out=out)


def _suite_entries(suite: Suite) -> list[Entry]:
    from scen_cli.data.entries import Entry
    from scen_cli.data.records import SourceLine

    return [Entry(SourceLine(f"suite {suite.name}", n), record) for n, record in enumerate(suite.edits, start=1)]


def _entries(
    file: str | None,
    items: Iterator[tuple[int, object]] | None,
    prompt: str | None,
    target: str | None,
    suite: str | None,
    data: Path | None,
) -> list[Entry]:
    """The records asked for, whichever way they were given."""
    from scen_cli.data.entries import Entry, read_entries
    from scen_cli.data.records import SourceLine, check_record
    from scen_cli.data.suites import load_suite

    if file is not None:
        return read_entries(file, items)
    if suite is not None:
        return _suite_entries(load_suite(suite, data))
    if prompt is None or target is None:
        raise UsageError("`--prompt` and `--target` go together")
    try:
        record = check_record({"prompt": prompt, "target": target})
    except ValueError as error:
        raise UsageError(f"command line: {error}") from error
    return [Entry(SourceLine("command line", 1), record)]


def _run(
    editor: Editor,
    entries: list[Entry],
    strict: bool,
    out: Output,
    conflicts: str = "refuse",
    reason: str = "",
    batch: int = 1,
    fit_all: FitAll | None = None,
) -> list[Outcome]:
    """Edit what is not yet there. Under `strict` every record is checked before the first is trained."""
    from scen_cli.editing.edit_run import plan, train

    planned = plan(editor, entries, conflicts, reason)
    _refuse_hopeless(planned, strict)
    try:
        return _follow(planned, train(editor, planned, batch, fit_all), strict, out)
    finally:
        with suppress(DamageFound):  # the cache is made anew by whoever needs it; what went wrong is told already
            editor.project.merge()


def edit_by_method(editor: MethodEditor, entries: list[Entry], strict: bool, out: Output) -> list[Outcome]:
    """The same by another method than SCEN, in its batches."""
    from scen_cli.baselines.method_editor import learn, plan_for

    with editor.project.writing():
        planned = plan_for(editor, entries)
        _refuse_hopeless(planned, strict)
        return _follow(planned, learn(editor, planned), strict, out)


def _refuse_hopeless(planned: Plan, strict: bool) -> None:
    """Under `strict` one record that must fail is enough to do nothing."""
    hopeless = [known for known in planned.outcomes if known is not None and known.outcome == "failed"]
    if strict and hopeless:
        kind = SomeEditsFailed if hopeless[0].edit else UsageError  # tried before, or never possible
        raise kind(
            f"{hopeless[0].where}: {hopeless[0].reason}\nnothing was edited",
            hint="mend the record, or skip such records with `--keep-going`"
            + ("; `--conflicts supersede` or `--conflicts keep` if you mean it" if planned.conflicts else ""),
        )


def _follow(planned: Plan, run: Iterator[dict[int, Outcome]], strict: bool, out: Output) -> list[Outcome]:
    """Go through a run, telling what becomes of each record; returns what did."""
    outcomes = planned.outcomes
    for known in filter(None, outcomes):
        (out.warn if known.needs_attention else out.note)(str(known))
    started, trained = time.perf_counter(), 0
    with out.progress(outcomes.count(None), "editing") as tell, interruptible(out.note) as check:
        check()
        for made in run:
            for outcome in made.values():
                trained += 1
                if outcome.needs_attention:
                    out.warn(str(outcome))
                pace = f"{(time.perf_counter() - started) / trained:.2f} s/edit"
                tell("" if outcome.needs_attention else str(outcome), pace)
            if strict and any(outcome.outcome == "failed" for outcome in made.values()):
                break
            if None in outcomes:  # there is more to train
                check()
    done = [outcome for outcome in outcomes if outcome is not None]
    if len(done) < len(outcomes):
        out.warn(f"stopped there, {len(outcomes) - len(done)} records before the end (`--keep-going` goes on)")
    return done
