"""`scen eval`: Reliability, Generality, Locality after the last edit, and more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from scen_cli.cli.loaders import HERE, Author, Device, Dir, Wait, open_editor, open_method_editor, open_project
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.errors import GateNotMet, ScenError, UsageError

if TYPE_CHECKING:
    from scen_cli.evaluation.evaluate_project import Evaluation

CHANGES_SHOWN = 40

# Heading, then the figures under it: by name, or by the part of their names before the slash.
SECTIONS = {
    "portability: what follows from the edit": "portability",
    "near-miss locality: prompts beside the edit, same answer as the base": "near-miss",
    "robustness: the edit's own prompt, otherwise put (which a base may never have met)": "robustness",
}


def evaluate(
    suite: Annotated[str, typer.Option(help="demo; zsre, counterfact or hallucination with --data; or a file.")],
    data: Annotated[Path | None, typer.Option(help="The data file of a named suite, in any published form.")] = None,
    locality: Annotated[Path | None, typer.Option(help="JSONL of prompts that must not change.")] = None,
    accurate: Annotated[Path | None, typer.Option(help="hallucination: the accurate sentences (WikiBio-A).")] = None,
    openwebtext: Annotated[Path | None, typer.Option(help="hallucination: plain texts (OpenWebText).")] = None,
    decoding: Annotated[str, typer.Option(help="greedy, or paper (4 beams, repetition penalty 1.1).")] = "greedy",
    quick: Annotated[bool, typer.Option("--quick", help="The paper's three figures alone.")] = False,
    gate: Annotated[
        list[str] | None, typer.Option(help="Exit 3 unless a figure holds, e.g. 'reliability>=0.99'. Repeatable.")
    ] = None,
    against: Annotated[int | None, typer.Option(help="Compare with an earlier evaluation, by its number.")] = None,
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
    from scen_cli.evaluation.gates import FURTHER, PAPERS, PERPLEXITIES, check_gates, not_met, parse_gates

    gates = parse_gates(gate or [])
    check_gates(gates, PERPLEXITIES if suite == "hallucination" else PAPERS if quick else PAPERS + FURTHER)
    earlier = _earlier(dir, against, suite) if against is not None else None
    if suite == "hallucination":
        if locality or quick or decoding != "greedy":
            raise UsageError("`--locality`, `--quick` and `--decoding` say nothing of the hallucination suite")
        evaluation = _perplexity((data, accurate, openwebtext), dir, device, out)
    else:
        if accurate or openwebtext:
            raise UsageError("`--accurate` and `--openwebtext` are files of the hallucination suite alone")
        evaluation = _generation(suite, data, locality, decoding, quick, dir, device, out)
    from scen_cli.evaluation.evaluate_project import keep

    number, trouble = None, None
    try:
        number = keep(open_project(dir, author, wait), evaluation)
    except ScenError as error:  # hours of figures outlive a busy ledger
        trouble = error
    result = {"evaluation": number, **evaluation.as_dict(), "samples": [s.as_dict() for s in evaluation.samples]}
    shown = figures(evaluation)
    if earlier:
        result["against"], lines = _compare(earlier, result)
        shown += lines
    known = [one for one in gates if one.figure in evaluation.figures]
    problems = not_met(known, evaluation.figures)
    out.result({**result, "gates_not_met": problems}, *shown)
    if trouble:
        raise trouble
    out.note(f"kept as evaluation {number}: `--against {number}` compares a later one with it")
    if len(known) < len(gates):
        not_met(gates, evaluation.figures)  # says which kind was not asked
    if problems:
        raise GateNotMet("\n".join(problems))


def _generation(
    suite: str,
    data: Path | None,
    locality: Path | None,
    decoding: str,
    quick: bool,
    dir: Path,
    device: str,
    out: Output,
) -> Evaluation:
    from scen_cli.data.suites import load_suite

    loaded = load_suite(suite, data, locality)
    project = open_project(dir)
    if project.method:
        editor_by_method = open_method_editor(project, device, out)
        from scen_cli.baselines.evaluate_method import evaluate_method

        return evaluate_method(editor_by_method, loaded, decoding)
    editor = open_editor(dir, device, out)
    from scen_cli.evaluation.evaluate_project import evaluate

    with out.counting("answers") as tell:
        return evaluate(editor, loaded, decoding, quick, tell)


def _perplexity(files: tuple[Path | None, Path | None, Path | None], dir: Path, device: str, out: Output) -> Evaluation:
    from scen_cli.data.passages import load_passages

    passages = load_passages(*files)
    editor = open_editor(dir, device, out)
    from scen_cli.evaluation.hallucination import evaluate_perplexity

    return evaluate_perplexity(editor, passages)


def figures(evaluation: Evaluation) -> list[RenderableType]:
    """The tables of one evaluation."""
    from scen_cli.evaluation.samples import PAPERS_ROLES

    found = evaluation.figures
    teacher_forced = evaluation.decoding == "teacher-forced"
    shown: list[RenderableType] = [_title(evaluation)]
    if teacher_forced:
        rows = [(name, figure.patched, figure.base, figure.fired) for name, figure in found.items()]
        shown.append(table(("perplexity", "patched", "base", "an edit fired"), rows))
        shown += [f"({count} texts of {name} were cut to the base's context)" for name, count in _cut(evaluation)]
        return [*shown, "\neach figure: mean (samples; 95 % interval)"]
    main = [(name.capitalize(), found[name].patched, found[name].base) for name in PAPERS_ROLES]
    shown.append(table(("", "patched", "base"), main))
    if "generality-given-expert" not in found:  # by another method than SCEN, which does not route as SCEN does
        return [*shown, "\neach figure: share (right/total; 95 % interval)"]
    routing = [
        ("Generality, right expert given", found["generality-given-expert"].patched),
        ("rephrases routed to their edit", found["generality"].routed),
        ("locality prompts, never edited, where an edit fired", found["locality"].fired),
    ]
    shown += ["\nrouting", table(("", ""), routing)]
    for heading, role in SECTIONS.items():
        rows = [
            (name.split("/")[1], f.patched, f.base, f.fired) for name, f in found.items() if name.startswith(f"{role}/")
        ]
        if rows:
            shown += [f"\n{heading}", table(("", "patched", "base", "an edit fired"), rows)]
    if "drift-kl" in found:
        changed, kl = found["drift-changed"], found["drift-kl"]
        moves = [("output changed", changed.patched), ("KL of the next token, nats", kl.patched)]
        shown += ["\ndrift: prompts that were never edited", table(("", ""), moves)]
    if evaluation.curves:
        curve = [f"{point['reliability']['right']}/{point['edits']}" for point in evaluation.curves["retention"]]
        shown += ["\nretention: Reliability of edits 1..t when there were t", "  ".join(curve)]
    if "token-accuracy" in found:
        teacher = found["token-accuracy"]
        shown += ["\nteacher-forced token accuracy (not generation)"]
        shown.append(table(("", "patched", "base"), [("target tokens", teacher.patched, teacher.base)]))
    return [*shown, "\neach figure: share (right/total; 95 % interval)"]


def _title(evaluation: Evaluation) -> str:
    failed = f", {evaluation.not_learned} of them not learned" if evaluation.not_learned else ""
    how = f"after the last edit, {evaluation.decoding} decoding, exact match"
    if evaluation.decoding == "teacher-forced":
        how = "after the last edit, routed at the passage's last token"
    title = f"{evaluation.suite}: {evaluation.edits} edits{failed}, {how}"
    never_edited = evaluation.records - evaluation.edits - evaluation.left_out
    if never_edited:
        title += f"\n(never edited, and not scored: {never_edited} of the suite's {evaluation.records} records)"
    if evaluation.left_out:
        title += f"\n(left out: {evaluation.left_out} whose edits were superseded or reverted since)"
    if evaluation.guarded:
        title += f"\n({evaluation.guarded} locality prompts stand in the guard, and are not scored)"
    if evaluation.too_long:
        title += f"\n({evaluation.too_long} prompts or texts do not fit the base's context and were not asked)"
    return title


def _cut(evaluation: Evaluation) -> list[tuple[str, int]]:
    return [(name, count) for name, count in evaluation.curves["cut"].items() if count]


def _earlier(dir: Path, number: int, suite: str) -> dict[str, Any]:
    """The evaluation to compare with. Raises `UsageError` if there is none of that number and suite."""
    ledger = open_project(dir).ledger
    earlier = ledger.evaluation(number)
    if earlier is None:
        known = ", ".join(f"{row['id']} ({row['suite']}, {row['created']})" for row in ledger.evaluations())
        raise UsageError(f"there is no evaluation {number}", hint=f"evaluations: {known or 'none yet'}")
    if earlier["suite"] != Path(suite).name:
        raise UsageError(f"evaluation {number} is of suite `{earlier['suite']}`, this one of `{Path(suite).name}`")
    return earlier


def _compare(earlier: dict[str, Any], now: dict[str, Any]) -> tuple[dict[str, Any], list[RenderableType]]:
    from scen_cli.evaluation.diff import changes, moved

    figures_moved = moved(earlier["metrics"]["figures"], now["figures"])
    found, alone = changes(earlier["samples"], now["samples"])
    both = [(name, was, now_is) for name, was, now_is in figures_moved if was is not None and now_is is not None]
    rows = [(name, _short(was), _short(now_is)) for name, was, now_is in both if was != now_is]
    order = sorted(found, key=lambda change: ("lost", "won", "changed").index(change.verdict))
    lines: list[RenderableType] = [f"\nagainst evaluation {earlier['id']} of {earlier['created']}"]
    for name in ("decoding", "theta"):
        if earlier["metrics"].get(name) != now[name]:
            lines.append(f"(with another {name}: {earlier['metrics'].get(name)} then, {now[name]} now)")
    lines += [table(("", "before#", "now#"), rows)] if rows else ["no figure moved"]
    if found:
        shown = [
            (c.verdict, f"{c.role}/{c.kind}".rstrip("/"), c.edit, c.prompt, c.before, c.now, c.wanted)
            for c in order[:CHANGES_SHOWN]
        ]
        lines.append(table(("", "", "edit#", "prompt", "before", "now", "wanted"), shown))
    if len(found) > CHANGES_SHOWN:
        lines.append(f"and {len(found) - CHANGES_SHOWN} more: `--json` has them all")
    if alone:
        lines.append(f"({alone} prompts were asked in one of the two alone)")
    data = {
        "evaluation": earlier["id"],
        "figures": [{"figure": name, "before": was, "now": now_is} for name, was, now_is in figures_moved],
        "changes": [change.as_dict() for change in order],
        "asked_in_one_alone": alone,
    }
    return data, lines


def _short(value: float) -> str:
    return f"{value:.4f}"
