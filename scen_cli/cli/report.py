"""`scen report`: one page about a project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scen_cli.cli.loaders import HERE, Dir, open_project
from scen_cli.cli.output import Json, Output, Quiet


def report(
    to: Annotated[Path | None, typer.Option("--out", help="The file to write.", show_default="DIR/report.html")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead, without pictures.")] = False,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one self-contained HTML page: base, settings, figures with intervals, curves, confusions, costs, edits.

    The figures are those of the newest `scen eval` of each suite. The pictures need matplotlib.

    Example: scen report
    """
    out = Output(as_json, quiet)
    project = open_project(dir)
    from scen_cli.report.gather import gather

    found = gather(project)
    if markdown:
        from scen_cli.report.markdown import as_markdown

        text = as_markdown(found)
        if to is None:
            return out.result({"markdown": text}, text.rstrip("\n"))
    else:
        from scen_cli.report.page import as_page
        from scen_cli.report.pictures import has_matplotlib

        if not has_matplotlib():
            out.warn("the page has no pictures: they need matplotlib (`pip install matplotlib`)")
        text = as_page(found)
    from scen_cli.data.write_files import write_text

    path = to or dir / "report.html"
    write_text(path, text)
    out.result({"out": str(path), "bytes": path.stat().st_size}, f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    return None
