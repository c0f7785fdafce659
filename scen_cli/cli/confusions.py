"""`scen confusions`: edits that may be mistaken for one another."""

from __future__ import annotations

from typing import Annotated

import typer

from scen_cli.cli.loaders import HERE, Dir, open_scen_project
from scen_cli.cli.output import Json, Output, Quiet, table


def confusions(
    top: Annotated[int, typer.Option(min=1, help="Rows of each table.")] = 10,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show edits that may be mistaken for one another, guard prompts that activate an edit, edits with a small margin.

    The base is not loaded: the project keeps the keys. What happened in an evaluation comes from the newest one.

    Example: scen confusions
    """
    out = Output(as_json, quiet)
    project = open_scen_project(dir)
    out.note("loading torch")
    from scen_cli.editing.confusable_edits import find_confusions

    found = find_confusions(project, top)
    prompt = {edit.id: edit.prompt for edit in project.ledger.edits()}
    pairs: list[tuple[object, ...]] = [
        (pair.edit, pair.other, f"{pair.activation:.3f}", f"{pair.margin:.3f}", prompt[pair.edit], prompt[pair.other])
        for pair in found.pairs
    ]
    tables: list[tuple[str, tuple[str, ...], list[tuple[object, ...]]]] = [
        (
            f"largest activations on another edit's prompt (theta {found.theta:.4f})",
            ("edit#", "other#", "activation#", "margin#", "the edit's prompt", "the other's prompt"),
            pairs,
        ),
        (
            "edits with a small margin on their own prompt",
            ("edit#", "margin#", "prompt"),
            [(edit, f"{margin:.3f}", prompt[edit]) for edit, margin in found.small_margin],
        ),
        (
            "guard prompts that activate an edit",
            ("edit#", "activation#", "guard prompt", "the edit's prompt"),
            [(edit, f"{activation:.3f}", text, prompt[edit]) for text, edit, activation in found.guard],
        ),
        (
            "prompts of others that an edit answered in the newest evaluation",
            ("edit#", "of#", "prompts#", "the edit's prompt"),
            [(edit, other or "no edit", count, prompt[edit]) for edit, other, count in found.misrouted],
        ),
        (
            "edits that none of their rephrases was routed to in the newest evaluation",
            ("edit#", "prompt"),
            [(edit, prompt[edit]) for edit in found.never_routed],
        ),
    ]
    shown = [item for title, columns, rows in tables if rows for item in ("", title, table(columns, rows))][1:]
    out.result(found.as_dict(), *(shown or ["no edit is near another, and no guard prompt activates one"]))
