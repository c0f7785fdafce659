"""`scen eval`: Reliability, Generality, Locality after the last edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from scen_cli.cli.opening import HERE, Device, Dir, open_editor
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.editor import Editor
    from scen_cli.evaluation.evaluate import Evaluation


def evaluate(
    suite: Annotated[str, typer.Option(help="demo, zsre (with --data), or a file of edit records.")],
    data: Annotated[
        Path | None, typer.Option(help="zsre: its data file. A file of edits: JSONL of prompts that must not change.")
    ] = None,
    decoding: Annotated[str, typer.Option(help="greedy, or paper (4 beams, repetition penalty 1.1).")] = "greedy",
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score the edits by real generation and exact match, beside the base's own figures.

    Example: scen eval --suite demo
    """
    out = Output(as_json, quiet)
    from scen_cli.data.suites import load_suite

    loaded = load_suite(suite, data)
    editor = open_editor(dir, device, out)
    from scen_cli.evaluation.evaluate import DECODING
    from scen_cli.evaluation.evaluate import evaluate as run

    if decoding not in DECODING:
        raise UsageError(f"decoding `{decoding}` is not known", hint=f"one of: {', '.join(DECODING)}")
    evaluation = run(editor, loaded, decoding)
    out.result(evaluation.as_dict(), *figures(evaluation))  # first: hours of figures outlive a busy ledger
    keep(editor, evaluation)


def keep(editor: Editor, evaluation: Evaluation) -> None:
    """Write the figures into the ledger."""
    settings, last_change = {"decoding": evaluation.decoding}, evaluation.last_change
    with editor.project.writing():
        editor.project.record_evaluation(evaluation.suite, settings, evaluation.as_dict(), last_change)


def figures(evaluation: Evaluation) -> list[RenderableType]:
    """The tables of one evaluation."""
    patched, base = evaluation.patched, evaluation.base
    rows = [
        ("Reliability", patched.reliability, base.reliability),
        ("Generality", patched.generality, base.generality),
        ("Locality", patched.locality, base.locality),
    ]
    more = [
        ("Generality, right expert given", evaluation.generality_given_expert),
        ("rephrases routed to their edit", evaluation.rephrases_routed),
        ("locality prompts where an edit fired", evaluation.locality_fired),
    ]
    failed = f", {evaluation.not_learned} of them not learned" if evaluation.not_learned else ""
    how = f"after the last edit, {evaluation.decoding} decoding, exact match"
    title = f"{evaluation.suite}: {evaluation.edits} edits{failed}, {how}"
    never_edited = evaluation.records - evaluation.edits - evaluation.left_out
    if never_edited:
        title += f"\n(never edited, and not scored: {never_edited} of the suite's {evaluation.records} records)"
    if evaluation.left_out:
        title += f"\n(left out: {evaluation.left_out} whose edits were superseded or reverted since)"
    teacher = [("target tokens", patched.token_accuracy, base.token_accuracy)]
    return [
        title,
        table(("", "patched", "base"), rows),
        "\nrouting",
        table(("", ""), more),
        "\nteacher-forced token accuracy (not generation)",
        table(("", "patched", "base"), teacher),
        "\neach figure: share (right/total; 95 % interval)",
    ]
