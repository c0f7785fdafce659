"""`scen confusions`: which edits stand near each other, near what must not fire, or reach nothing but themselves."""

from __future__ import annotations

from typing import Annotated

import typer

from scen_cli.cli.loaders import HERE, Dir, open_scens_own
from scen_cli.cli.output import Json, Output, Quiet, table


def confusions(
    top: Annotated[int, typer.Option(min=1, help="Lines of each table.")] = 10,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Edits that may be taken for one another, guard prompts that fire, edits without margin.

    From the project's cached keys: the base is not loaded. What an evaluation has seen comes from the
    newest one in the ledger.

    Example: scen confusions
    """
    out = Output(as_json, quiet)
    project = open_scens_own(dir)
    out.note("loading torch")
    from scen_cli.editing.confusable_edits import find_confusions

    found = find_confusions(project, top)
    prompt = {edit.id: edit.prompt for edit in project.ledger.edits()}
    tables: list[tuple[str, tuple[str, ...], list[tuple[object, ...]]]] = [
        (
            f"nearest pairs (theta {found.theta:.4f})",
            ("edit#", "on that of#", "activation#", "margin#", "its prompt", "that prompt"),
            [
                (p.edit, p.other, f"{p.activation:.3f}", f"{p.margin:.3f}", prompt[p.edit], prompt[p.other])
                for p in found.pairs
            ],
        ),
        (
            "edits with little margin on their own prompt",
            ("edit#", "margin#", "prompt"),
            [(edit, f"{margin:.3f}", prompt[edit]) for edit, margin in found.without_margin],
        ),
        (
            "guard prompts that fire",
            ("edit#", "activation#", "guard prompt", "the edit's prompt"),
            [(edit, f"{activation:.3f}", text, prompt[edit]) for text, edit, activation in found.guard],
        ),
        (
            "prompts taken in the last evaluation",
            ("edit#", "of#", "prompts#", "the edit's prompt"),
            [(edit, other or "nobody", count, prompt[edit]) for edit, other, count in found.misrouted],
        ),
        (
            "edits that none of their rephrases called in the last evaluation",
            ("edit#", "prompt"),
            [(edit, prompt[edit]) for edit in found.never_routed],
        ),
    ]
    parts = [part for title, columns, rows in tables if rows for part in ("", title, table(columns, rows))][1:]
    out.result(found.as_dict(), *(parts or ["no edit is near another, and no guard prompt fires"]))
