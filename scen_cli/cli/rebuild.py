"""`scen rebuild`: make edits again from their files, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scen_cli.cli.edit import print_outcomes
from scen_cli.cli.loaders import HERE, Author, Device, Dir, Wait, open_editor
from scen_cli.cli.output import Json, Output, Quiet


def rebuild(
    folder: Annotated[Path, typer.Argument(help="A project that has lost its ledger, or a folder of edit files.")],
    author: Author = None,
    wait: Wait = 0,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make edits again from their files, without training: for a project whose `scen.db` is lost, or for the files in
    `lost/`.

    First make a project as the old one was made: `scen init` with the same base, layer and recipe. The files do not say
    which edits were reverted: these are active again. Of two edits of one prompt, the later one is.

    Example: scen rebuild old --dir new
    """
    from scen_cli.editing.rebuild_edits import edit_files_in
    from scen_cli.editing.rebuild_edits import rebuild as rebuild_edits

    out = Output(as_json, quiet)
    files = edit_files_in(folder)
    editor = open_editor(dir, device, out, author, wait)
    outcomes = []
    with editor.project.writing(), out.progress(len(files), "rebuilding") as progress:
        for of_file in rebuild_edits(editor, files):
            outcomes += of_file
            for outcome in filter(lambda outcome: outcome.needs_attention, of_file):
                out.warn(str(outcome))
            progress("; ".join(str(outcome) for outcome in of_file if not outcome.needs_attention), "")
    out.note("edits that had been reverted are active again: `scen status` lists all, `scen revert` takes one back")
    print_outcomes(editor.project, outcomes, out)
