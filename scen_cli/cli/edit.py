"""`scen edit`: train and commit each record of a file, or replay a log."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.loaders import HERE, Author, Device, Dir, Wait, load_editor, load_scen_editor, open_project
from scen_cli.cli.output import Json, Output, Quiet
from scen_cli.cli.run_edits import replay_log, run_edits, suite_entries
from scen_cli.errors import SomeEditsFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scen_cli.data.entries import Entry
    from scen_cli.data.log_events import LogEvent
    from scen_cli.editing.edit_plan import Outcome
    from scen_cli.experts.fit_records import FitAll
    from scen_cli.project.project import Project

POLICIES = ("refuse", "supersede", "keep")


def edit(
    file: Annotated[
        str | None, typer.Argument(help="JSONL, JSON, CSV, Parquet or Arrow; `-` is standard input.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="One edit: its prompt (with --target).")] = None,
    target: Annotated[str | None, typer.Option(help="One edit: its target (with --prompt).")] = None,
    subject: Annotated[
        str | None, typer.Option(help="One edit: what it is about, as the prompt names it. Finds more rephrases.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Edit a suite's facts: demo, real-facts, zsre with --data, a file.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The suite's data file.")] = None,
    first: Annotated[int | None, typer.Option(min=1, help="Only the first N records.")] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict/--keep-going", help="Refuse a file with a bad record; or skip bad records."),
    ] = True,
    conflicts: Annotated[
        str,
        typer.Option(help="A record that contradicts an edit in other words: refuse, supersede the edit, keep both."),
    ] = "refuse",
    reason: Annotated[str, typer.Option(help="With `--conflicts keep`: why both are kept, for the ledger.")] = "",
    train_rephrases: Annotated[
        int, typer.Option(min=0, help="Train on each record's first N rephrases too; these are not scored.")
    ] = 0,
    batch: Annotated[
        int, typer.Option(min=1, help="Experts trained together: faster on a GPU, equal but for rounding.")
    ] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Training processes, one for each GPU: the same edits.")] = 1,
    engine: Annotated[
        str, typer.Option(help="With --workers: processes, or ray (of the cluster that RAY_ADDRESS names).")
    ] = "processes",
    author: Author = None,
    wait: Wait = 0,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Edit facts: train an expert and an indexing neuron for each record, and commit each edit by itself.

    After an interruption, run the same command again: it continues.

    Example: scen edit edits.jsonl

    Example: scen edit --prompt "Where was Ada born?" --target Riga --subject Ada
    """
    out = Output(as_json, quiet)
    _check_policy(conflicts, reason)
    if engine not in ("processes", "ray"):
        raise UsageError(f"`--engine {engine}` is not known", hint="one of: processes, ray")
    if [file is not None, suite is not None, prompt is not None or target is not None].count(True) != 1:
        raise UsageError("give one of: a file, `--suite`, or `--prompt` with `--target`", hint="`scen edit --help`")
    events, items = _log_or_records(file)
    project = open_project(dir, author, wait)
    for_scen = bool(train_rephrases or conflicts != "refuse" or batch > 1 or workers > 1 or engine != "processes")
    if project.method and (events or for_scen):
        raise UsageError(f"a project that edits by `{project.method}` takes records as they are, in its own batches")
    if events:
        _check_replay(events, bool(first or for_scen))
        print_outcomes(project, replay_log(load_scen_editor(project, device, out), events, out), out)
        return
    one = {"prompt": prompt, "target": target, "subject": subject}
    entries = _entries(file, items, one, suite, data)[:first]
    entries = [_with_train_rephrases(entry, train_rephrases) for entry in entries]
    _check_entries(entries, strict, out)
    _note_missing_subjects(project, entries, out)
    editor = load_editor(project, device, out)
    with project.writing(), _training_workers(project, workers, engine, device) as fit_all:
        outcomes = run_edits(editor, entries, strict, out, conflicts, reason, batch, fit_all)
    print_outcomes(project, outcomes, out)


def _log_or_records(file: str | None) -> tuple[list[LogEvent], Iterator[tuple[int, object]] | None]:
    """The entries of a project's log, if the file is one; otherwise its records."""
    from scen_cli.data.log_events import split_log

    return split_log(file) if file is not None else ([], None)


def _check_policy(conflicts: str, reason: str) -> None:
    if conflicts not in POLICIES:
        raise UsageError(f"`--conflicts {conflicts}` is not known", hint=f"one of: {', '.join(POLICIES)}")
    if (conflicts == "keep") != bool(reason.strip()):
        raise UsageError("`--conflicts keep` and `--reason` go together", hint="say why both edits are kept")


def _check_replay(events: list[LogEvent], has_options: bool) -> None:
    if has_options:
        raise UsageError("a log is replayed as it is: `--first`, `--train-rephrases` and similar options do not apply")
    if any(event.kind == "init" and event.detail.get("method") for event in events):
        raise UsageError("this is the log of a project that edits by another method: it cannot be replayed")


def _check_entries(entries: list[Entry], strict: bool, out: Output) -> None:
    from scen_cli.data.entries import bad_lines, empty_fields

    bad = [entry for entry in entries if entry.record is None]
    if bad and strict:
        raise UsageError(
            bad_lines(bad) + "\nnothing was edited", hint="correct the file, or skip such records with `--keep-going`"
        )
    for line in empty_fields(entries):
        out.note(line)


def _note_missing_subjects(project: Project, entries: list[Entry], out: Output) -> None:
    """Say so if routing would find more rephrases with subjects that the records do not name."""
    missing = sum(entry.record is not None and entry.record.subject is None for entry in entries)
    if missing and project.settings["recipe"].get("mask_subject"):
        who = "the edit has" if len(entries) == 1 else f"{missing} of {len(entries)} records have"
        out.note(f"{who} no `subject`: with one, more rephrases are found, and fewer other questions")


def _with_train_rephrases(entry: Entry, count: int) -> Entry:
    """The entry with its first rephrases moved to those that are trained on, and not scored."""
    if entry.record is None or not count:
        return entry
    record = entry.record
    moved = (*record.train_rephrases, *record.rephrases[:count])
    changes = {"train_rephrases": moved, "rephrases": record.rephrases[count:]}
    return replace(entry, record=record.model_copy(update=changes))


def _entries(
    file: str | None,
    items: Iterator[tuple[int, object]] | None,
    one: dict[str, str | None],
    suite: str | None,
    data: Path | None,
) -> list[Entry]:
    """The records, however they were given; `one` has the fields of a record that the options give."""
    from scen_cli.data.dataset_forms import parse_records
    from scen_cli.data.entries import Entry, read_entries
    from scen_cli.data.records import SourceLine, check_record
    from scen_cli.data.suites import load_suite

    if one["subject"] is not None and one["prompt"] is None:
        raise UsageError("`--subject` belongs to `--prompt`: records of a file name their own")
    if file is not None:
        return read_entries(file, items)
    if suite is not None:
        return suite_entries(load_suite(suite, data))
    if one["prompt"] is None or one["target"] is None:
        raise UsageError("`--prompt` and `--target` go together")
    fields = {name: value for name, value in one.items() if value is not None}
    try:
        check_record(fields)  # an empty option is a mistake, an empty field of a file is not
        [record] = parse_records(fields).records
    except ValueError as error:
        raise UsageError(f"command line: {error}") from error
    return [Entry(SourceLine("command line", 1), record)]


def _training_workers(
    project: Project, workers: int, engine: str, device: str
) -> AbstractContextManager[FitAll | None]:
    """The processes that train experts; None: this process."""
    if workers > 1 and device == "auto" and project.settings.get("device_map"):
        raise UsageError("a base that is spread over all devices leaves none to other workers", hint="`--workers 1`")
    if engine == "ray":
        from scen_cli.experts.ray_pool import RayPool

        return RayPool(project.settings, workers, device)
    if workers == 1:
        return nullcontext()
    from scen_cli.experts.process_pool import WorkerPool

    return WorkerPool(project.settings, workers, device)


def print_outcomes(project: Project, outcomes: list[Outcome], out: Output) -> None:
    counts = {kind: sum(outcome.outcome == kind for outcome in outcomes) for kind in ("edited", "skipped", "failed")}
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    active = len(project.ledger.active_prompts())
    records = [asdict(outcome) for outcome in outcomes]
    out.result({**counts, "active": active, "edits": records}, f"{summary}; {active} active edits")
    if counts["failed"]:
        tried = any(outcome.outcome == "failed" and outcome.edit for outcome in outcomes)
        hint = "the reasons are above: correct these records"
        if tried:
            hint = "more steps may learn them, in a new project: `scen init --dir NEW --set expert_steps=20`"
        raise SomeEditsFailed(f"{counts['failed']} records were not edited", hint=hint)
