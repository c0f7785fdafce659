"""The tables that `scen eval` and `scen demo` print of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from scen_cli.cli.output import table

if TYPE_CHECKING:
    from scen_cli.evaluation.evaluation import Evaluation
    from scen_cli.evaluation.metrics import Figure

MAX_CHANGES = 40  # changed answers shown

# Heading, then the figures below it: those whose names start with the role.
SECTIONS = {
    "portability: questions whose answers follow from the edit": "portability",
    "near-miss locality: prompts close to the edit, which must keep the base's answer": "near-miss",
    "robustness: the edit's prompt, perturbed (the base itself may fail on it)": "robustness",
}
COLUMNS = ("", "patched", "base", "an edit was activated")


def figure_tables(evaluation: Evaluation) -> list[RenderableType]:
    """The tables of one evaluation."""
    from scen_cli.evaluation.samples import PAPER_ROLES

    found = evaluation.figures
    if evaluation.decoding == "teacher-forced":
        rows = [(name, figure.patched, figure.base, figure.fired) for name, figure in found.items()]
        cut = [(name, count) for name, count in evaluation.curves["cut"].items() if count]
        notes = [f"({count} texts of {name} were cut to the base's context)" for name, count in cut]
        perplexities = table(("perplexity", *COLUMNS[1:]), rows)
        return [_title(evaluation), perplexities, *notes, "\neach figure: mean (samples; 95 % interval)"]
    main = [(name.capitalize(), found[name].patched, found[name].base) for name in PAPER_ROLES]
    shown: list[RenderableType] = [_title(evaluation), table(COLUMNS[:3], main)]
    if "generality-given-expert" in found:  # SCEN's own: another method does not route
        shown += _routing_tables(evaluation)
    return [*shown, "\neach figure: share (right/total; 95 % interval)"]


def _routing_tables(evaluation: Evaluation) -> list[RenderableType]:
    found = evaluation.figures
    routing = [
        ("Generality, right expert given", found["generality-given-expert"].patched),
        ("rephrases routed to their edit", found["generality"].routed),
        ("unedited prompts that activated an edit", found["locality"].fired),
    ]
    shown: list[RenderableType] = ["\nrouting", table(("", ""), routing)]
    shown += [
        "\nthe target inside longer answers; leak: in answers that should not have it",
        table(COLUMNS[:3], _sentence_rows(found)),
    ]
    for heading, role in SECTIONS.items():
        rows = [
            (name.split("/")[1], figure.patched, figure.base, figure.fired)
            for name, figure in found.items()
            if name.startswith(f"{role}/")
        ]
        if rows:
            shown += [f"\n{heading}", table(COLUMNS, rows)]
    if "drift-kl" in found:
        drift = [("output changed", "drift-changed"), ("KL divergence of the next token, nats", "drift-kl")]
        rows_of_drift = [(label, found[name].patched) for label, name in drift]
        shown += ["\ndrift on unedited prompts", table(("", ""), rows_of_drift)]
    if evaluation.curves:
        curve = [f"{point['reliability']['right']}/{point['edits']}" for point in evaluation.curves["retention"]]
        shown += ["\nretention: Reliability of edits 1..t when only those existed", "  ".join(curve)]
    if "token-accuracy" in found:
        teacher = found["token-accuracy"]
        shown += ["\nteacher-forced token accuracy (not generation)"]
        shown.append(table(COLUMNS[:3], [("target tokens", teacher.patched, teacher.base)]))
    return shown


def _sentence_rows(found: dict[str, Figure]) -> list[tuple[Any, ...]]:
    rows = []
    for role in ("reliability", "generality"):
        for name, label in (("contains", "contained"), ("runs-on", "contained, and more follows")):
            figure = found[f"{role}-{name}"]
            rows.append((f"{role.capitalize()}: {label}", figure.patched, figure.base))
    leaks = [(name.split("/")[1], figure.patched) for name, figure in found.items() if name.startswith("leak/")]
    return rows + [(f"leak: {kind}", share, None) for kind, share in leaks]


def _title(evaluation: Evaluation) -> str:
    failed = f", {evaluation.not_learned} of them not learned" if evaluation.not_learned else ""
    how = f"after the last edit, {evaluation.decoding} decoding, exact match"
    if evaluation.decoding == "teacher-forced":
        how = "after the last edit, routed at the passage's last token"
    unedited = evaluation.records - evaluation.edits - evaluation.left_out
    notes = [
        (unedited, f"not scored: {unedited} of the suite's {evaluation.records} records were never edited"),
        (evaluation.left_out, f"not scored: {evaluation.left_out} records whose edits were superseded or reverted"),
        (evaluation.guarded, f"not scored: {evaluation.guarded} locality prompts that are in the guard"),
        (evaluation.too_long, f"not asked: {evaluation.too_long} prompts or texts that do not fit the base's context"),
    ]
    lines = [f"{evaluation.suite}: {evaluation.edits} edits{failed}, {how}"]
    return "\n".join([*lines, *(f"({text})" for count, text in notes if count)])


def changes_since(earlier: dict[str, Any], now: dict[str, Any]) -> tuple[dict[str, Any], list[RenderableType]]:
    """What changed since an earlier evaluation: as data, and as tables."""
    from scen_cli.evaluation.diff import changed_answers, changed_figures

    figures = changed_figures(earlier["metrics"]["figures"], now["figures"])
    changes, unmatched = changed_answers(earlier["samples"], now["samples"])
    both = [(name, old, new) for name, old, new in figures if old is not None and new is not None]
    rows = [(name, f"{old:.4f}", f"{new:.4f}") for name, old, new in both if old != new]
    order = sorted(changes, key=lambda change: ("lost", "won", "changed").index(change.verdict))
    lines: list[RenderableType] = [f"\ncompared to evaluation {earlier['id']} of {earlier['created']}"]
    for name in ("decoding", "theta"):
        if earlier["metrics"].get(name) != now[name]:
            lines.append(f"({name} differs: {earlier['metrics'].get(name)} then, {now[name]} now)")
    lines += [table(("", "before#", "now#"), rows)] if rows else ["no figure changed"]
    if changes:
        shown = [
            (c.verdict, f"{c.role}/{c.kind}".rstrip("/"), c.edit, c.prompt, c.before, c.now, c.wanted)
            for c in order[:MAX_CHANGES]
        ]
        lines.append(table(("", "", "edit#", "prompt", "before", "now", "wanted"), shown))
    if len(changes) > MAX_CHANGES:
        lines.append(f"and {len(changes) - MAX_CHANGES} more: `--json` lists all of them")
    if unmatched:
        lines.append(f"({unmatched} prompts were asked in only one of the two)")
    data = {
        "evaluation": earlier["id"],
        "figures": [{"figure": name, "before": old, "now": new} for name, old, new in figures],
        "changes": [change.as_dict() for change in order],
        "unmatched": unmatched,
    }
    return data, lines
