"""`scen compress`: replace full experts by low-rank ones."""

from __future__ import annotations

from typing import Annotated

import typer

from scen_cli.cli.loaders import HERE, Author, Device, Dir, Wait, open_editor
from scen_cli.cli.output import Json, Output, Quiet


def compress(
    rank: Annotated[str, typer.Option(help="Rank of the new experts; auto: the lowest that loses no answer.")] = "8",
    author: Author = None,
    wait: Wait = 0,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Replace the full experts of active edits by low-rank ones: a fraction of the bytes, the same right answers.

    Both experts answer every edit's prompt and rephrases. If a right answer would be lost, nothing is changed, and the
    edits are named.

    Example: scen compress --rank 8
    """
    out = Output(as_json, quiet)
    from scen_cli.recipe import check_rank

    new_rank = check_rank(rank)
    editor = open_editor(dir, device, out, author, wait)
    from scen_cli.editing.compress_experts import compress as compress_experts

    with editor.project.writing():
        full = sum(rank == 0 for rank in editor.project.ledger.active_ranks().values())
        with out.progress(full, "compressing") as progress:
            done = compress_experts(editor, new_rank, progress)
    out.result(
        {"experts": done.experts, "bytes_before": done.before, "bytes_after": done.after},
        f"{done.experts} experts compressed: {done.before:,} bytes before, {done.after:,} now "
        f"({done.before / done.after:.1f} times less); no right answer was lost",
    )
