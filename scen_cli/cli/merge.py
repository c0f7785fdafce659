"""`scen merge`: rebuild W_merge."""

from __future__ import annotations

from scen_cli.cli.loaders import HERE, Dir, Wait, open_scen_project
from scen_cli.cli.output import Json, Output, Quiet


def merge(wait: Wait = 0, dir: Dir = HERE, as_json: Json = False, quiet: Quiet = False) -> None:
    """Rebuild W_merge (equation 9) from the edit files. `scen edit` and `scen revert` do it themselves.

    Example: scen merge
    """
    project = open_scen_project(dir, wait=wait)
    with project.writing():
        stored = project.merge()
    rows, width = len(project.ledger.active_prompts()), project.settings["ffn_width"]
    Output(as_json, quiet).result(
        {"file": stored.file, "shape": [rows, width], "sha256": stored.sha256, "bytes": stored.size},
        f"{stored.file}: W_merge {rows} x {width}, sha256 {stored.sha256}",
    )
