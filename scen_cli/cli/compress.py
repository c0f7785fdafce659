"""`scen compress`: full experts become low-rank ones."""

from __future__ import annotations

from typing import Annotated

import typer

from scen_cli.cli.loaders import HERE, Author, Device, Dir, Wait, open_editor
from scen_cli.cli.output import Json, Output, Quiet


def compress(
    rank: Annotated[str, typer.Option(help="Of the new experts; auto: the least that loses no answer.")] = "8",
    author: Author = None,
    wait: Wait = 0,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit the full active experts anew at low rank: a fraction of the bytes, the same answers.

    Every edit's prompt and rephrases are asked of both. If one that was answered rightly would be lost, nothing is
    changed, and the edits are named.

    Example: scen compress --rank 8
    """
    out = Output(as_json, quiet)
    from scen_cli.recipe import check_rank

    wanted = check_rank(rank)
    editor = open_editor(dir, device, out, author, wait)
    from scen_cli.editing.compress_experts import compress as compress_all

    with editor.project.writing():
        full = sum(rank == 0 for rank in editor.project.ledger.active_ranks().values())
        with out.progress(full, "compressing") as tell:
            done = compress_all(editor, wanted, tell)
    out.result(
        {"experts": done.experts, "bytes_before": done.before, "bytes_after": done.after},
        f"{done.experts} experts compressed: {done.before:,} bytes before, {done.after:,} now "
        f"({done.before / done.after:.1f} times less); no right answer was lost",
    )
