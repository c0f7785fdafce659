"""`scen calibrate`: set theta by the share of unedited prompts that may activate an edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.loaders import HERE, Author, Device, Dir, Wait, open_editor
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.editing.editor import Editor
    from scen_cli.evaluation.threshold_table import Choice

COLUMNS = ("", "rate#", "theta#", "expected rate (95 %)#", "fresh guard prompts#", "edits#", "rephrases#")


def calibrate(
    false_activation: Annotated[
        float | None,
        typer.Option(
            "--false-activation",
            "--target-fpr",
            min=0,
            max=0.5,
            help="Share of unedited prompts that may activate an edit, e.g. 0.01.",
        ),
    ] = None,
    theta: Annotated[float | None, typer.Option(min=0, max=1, help="Set theta by hand instead.")] = None,
    guard: Annotated[
        str | None,
        typer.Option(help="New calibration prompts, kept in the project: a file, or `self` (the base samples them)."),
    ] = None,
    author: Author = None,
    wait: Wait = 0,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Set theta so that unedited prompts rarely activate an edit, and show what each rate would cost.

    Later edits keep the rate: each calibrates theta again. Without a rate or a theta, nothing is changed.

    Example: scen calibrate --false-activation 0.01
    """
    out = Output(as_json, quiet)
    if false_activation is not None and theta is not None:
        raise UsageError("`--false-activation` and `--theta` both set the threshold: give one of them")
    if 0 in (false_activation, theta):
        raise UsageError("a rate or theta of 0 is not possible")
    editor = open_editor(dir, device, out, author, wait)
    with editor.project.writing(), out.working("calibrating"):
        if guard:
            rate = None if theta else false_activation or editor.project.ledger.threshold().false_activation
            false_activation = rate or false_activation
            _replace_guard(editor, guard, rate, out)
        from scen_cli.evaluation.threshold_table import ThresholdTable

        thresholds = ThresholdTable(editor)
        choices = thresholds.rows(*([false_activation] if false_activation else []))
        chosen = thresholds.for_rate(false_activation) if false_activation else None
        chosen = thresholds.for_theta(theta) if theta else chosen
        if chosen:
            editor.project.set_threshold(chosen.threshold)
            if chosen.own.right < chosen.own.total:
                out.warn(f"at this theta {chosen.own.total - chosen.own.right} edits miss their own prompt")
    current = chosen or thresholds.describe(editor.project.ledger.threshold())
    marked = next((choice for choice in choices if _same(choice, current)), current)
    rows = choices if marked in choices else [*choices, marked]
    out.result(
        {"theta": current.threshold.theta, "set": bool(chosen), "choices": [choice.as_dict() for choice in rows]},
        table(COLUMNS, [_row(choice, choice is marked) for choice in rows]),
        _conclusion(chosen),
    )


def _same(choice: Choice, other: Choice) -> bool:
    """Whether two choices have the same theta, and the same rate if both know theirs."""
    rates = {choice.threshold.false_activation, other.threshold.false_activation} - {None}
    return choice.threshold.theta == other.threshold.theta and len(rates) == 1


def _row(choice: Choice, current: bool) -> tuple[str, ...]:
    threshold, (low, high) = choice.threshold, choice.expected_fresh
    rate, expected = "by hand", "-"
    if threshold.false_activation is not None:
        rate = f"{100 * threshold.false_activation:g} %"
        interval = f"{100 * (threshold.fpr_low or 0):.1f} to {100 * (threshold.fpr_high or 0):.1f}"
        expected = f"{100 * (threshold.fpr_expected or 0):.2f} % ({interval})"
    fresh = f"{choice.fresh.right} of {choice.fresh.total}"
    if threshold.n_guard:
        fresh += f" ({low} to {high} expected)"
    return (
        ">" if current else "",
        rate,
        f"{threshold.theta:.4f}",
        expected,
        fresh,
        f"{choice.own.right}/{choice.own.total}",
        f"{choice.rephrases.right}/{choice.rephrases.total}",
    )


def _conclusion(chosen: Choice | None) -> str:
    if chosen is None:
        return "theta is unchanged (`>`); `--false-activation RATE` sets it"
    threshold = chosen.threshold
    if threshold.false_activation is None:
        return f"theta is {threshold.theta:g}, and stays so"
    if (threshold.fpr_expected or 0) > threshold.false_activation:
        return f"theta is {threshold.theta:.4f}: with a higher one, an edit would miss its own prompt"
    return f"theta is {threshold.theta:.4f}; every further edit calibrates it again, for the same rate"


def _replace_guard(editor: Editor, source: str, rate: float | None, out: Output) -> None:
    """Replace the prompts that theta is calibrated on. Nothing is changed if they are not suitable."""
    from scen_cli.neurons.build_guard import make_guard, replace_guard_splits
    from scen_cli.neurons.calibration import check_enough

    file = None if source == "self" else Path(source)
    out.note("reading the guard's keys" if file else "the base samples prompts")
    project = editor.project
    seed = int(project.settings["seed"]) + len(project.ledger.events())  # other prompts than it sampled before
    new = make_guard(editor.base, editor.template, editor.edited, editor.routing.key_config, seed, file)
    old = project.guard()
    new = replace_guard_splits(old, new) if old else new
    if rate:
        check_enough(sum(split == "calibration" for _prompt, split, _source in new.prompts), rate)
    if not project.ledger.active_experts():
        raise UsageError("no edit is active: nothing can be activated", hint="`scen edit edits.jsonl` makes edits")
    project.set_guard(new)
    editor.index.reload_guard()
