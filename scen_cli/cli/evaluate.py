"""`scen eval`: Reliability, Generality, Locality and further figures, after the last edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from scen_cli.cli.figures import changes_since, figure_tables
from scen_cli.cli.loaders import HERE, Author, Device, Dir, Wait, load_editor, load_scen_editor, open_project
from scen_cli.cli.output import Json, Output, Quiet
from scen_cli.errors import GateNotMet, ScenError, UsageError

if TYPE_CHECKING:
    from scen_cli.evaluation.evaluation import Evaluation
    from scen_cli.project.project import Project


def evaluate(
    suite: Annotated[str, typer.Option(help="demo; zsre, counterfact or hallucination with --data; or a file.")],
    data: Annotated[Path | None, typer.Option(help="The data file of a named suite, in any published form.")] = None,
    locality: Annotated[Path | None, typer.Option(help="JSONL of prompts that must not change.")] = None,
    accurate: Annotated[Path | None, typer.Option(help="hallucination: the accurate sentences (WikiBio-A).")] = None,
    openwebtext: Annotated[Path | None, typer.Option(help="hallucination: plain texts (OpenWebText).")] = None,
    decoding: Annotated[str, typer.Option(help="greedy, or paper (4 beams, repetition penalty 1.1).")] = "greedy",
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the paper's figures, leaks and targets inside answers.")
    ] = False,
    gate: Annotated[
        list[str] | None, typer.Option(help="Exit 3 unless a figure holds, e.g. 'reliability>=0.99'. Repeatable.")
    ] = None,
    compare_to: Annotated[int | None, typer.Option(help="Compare with an earlier evaluation, by its number.")] = None,
    author: Author = None,
    wait: Wait = 0,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score the edits by real generation and exact match, beside the base's own figures.

    Example: scen eval --suite demo --gate 'reliability>=0.95'
    """
    out = Output(as_json, quiet)
    from scen_cli.evaluation.gates import FURTHER, PAPER, PERPLEXITIES, SENTENCES, check_gates, not_met, parse_gates

    gates = parse_gates(gate or [])
    known = PAPER + SENTENCES + (() if quick else FURTHER)
    check_gates(gates, PERPLEXITIES if suite == "hallucination" else known)
    project = open_project(dir, author, wait)
    earlier = _earlier(project, compare_to, suite) if compare_to is not None else None
    if suite == "hallucination":
        if locality or quick or decoding != "greedy":
            raise UsageError("`--locality`, `--quick` and `--decoding` do not apply to the hallucination suite")
        evaluation = _perplexity(project, (data, accurate, openwebtext), device, out)
    else:
        if accurate or openwebtext:
            raise UsageError("`--accurate` and `--openwebtext` are files of the hallucination suite")
        evaluation = _generation(project, (suite, data, locality), decoding, quick, device, out)
    from scen_cli.evaluation.evaluation import record_evaluation

    number, failure = None, None
    try:
        number = record_evaluation(project, evaluation)
    except ScenError as error:  # print the figures first: they took long, and the ledger may only be busy
        failure = error
    samples = [sample.as_dict() for sample in evaluation.samples]
    result: dict[str, Any] = {"evaluation": number, **evaluation.as_dict(), "samples": samples}
    shown: list[RenderableType] = figure_tables(evaluation)
    if earlier:
        result["compared_to"], lines = changes_since(earlier, result)
        shown += lines
    measured = [one for one in gates if one.figure in evaluation.figures]
    problems = not_met(measured, evaluation.figures)
    out.result({**result, "gates_not_met": problems}, *shown)
    if failure:
        raise failure
    out.note(f"recorded as evaluation {number}: `--compare-to {number}` compares a later one with it")
    if len(measured) < len(gates):
        not_met(gates, evaluation.figures)  # raises, and names the figures that were measured
    if problems:
        raise GateNotMet("\n".join(problems))


def _generation(
    project: Project,
    source: tuple[str, Path | None, Path | None],
    decoding: str,
    quick: bool,
    device: str,
    out: Output,
) -> Evaluation:
    from scen_cli.data.suites import load_suite

    suite = load_suite(*source)
    editor = load_editor(project, device, out)
    from scen_cli.evaluation.evaluate_project import evaluate

    with out.counting("prompts routed or answered") as progress:
        return evaluate(editor, suite, decoding, quick, progress)


def _perplexity(
    project: Project, files: tuple[Path | None, Path | None, Path | None], device: str, out: Output
) -> Evaluation:
    from scen_cli.data.suites import load_passages

    passages = load_passages(*files)
    editor = load_scen_editor(project, device, out)
    from scen_cli.evaluation.hallucination import evaluate_perplexity

    return evaluate_perplexity(editor, passages)


def _earlier(project: Project, number: int, suite: str) -> dict[str, Any]:
    """The evaluation to compare with. Raises `UsageError` if it does not exist or is of another suite."""
    earlier = project.ledger.evaluation(number)
    if earlier is None:
        rows = project.ledger.evaluations()
        known = ", ".join(f"{row['id']} ({row['suite']}, {row['created']})" for row in rows)
        raise UsageError(f"there is no evaluation {number}", hint=f"evaluations: {known or 'none yet'}")
    if earlier["suite"] != Path(suite).name:
        raise UsageError(f"evaluation {number} is of suite `{earlier['suite']}`, this one of `{Path(suite).name}`")
    return earlier
