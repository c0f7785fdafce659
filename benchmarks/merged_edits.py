"""Edits folded into the weights beside the same edits routed: `python -m benchmarks.merged_edits [--json FILE]`

The demo base with its first 10, 100 and 500 edits; figures are those that `scen export --merge-into-weights` tells.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.measuring import show, write
from scen_cli import Editor, new_project
from scen_cli.data.records import SourceLine
from scen_cli.data.suites import demo_edits
from scen_cli.export.fold_weights import FIGURES, fold

EDITS = (10, 100, 500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        editor = Editor(new_project(Path(folder) / "project", "demo", device="cpu"), "cpu")
        for count in EDITS:
            with editor.project.writing():
                for place, record in enumerate(demo_edits()[:count], start=1):
                    if not editor.project.ledger.find_exact(record.prompt, record.target):
                        editor.edit(record, SourceLine("suite demo", place))
                editor.project.merge()
            with editor.snapshot() as patch:
                folded = fold(editor, patch, None, print)
            shares = {
                kind: {name: figures[name].patched.value for name in FIGURES}
                for kind, figures in (("folded", folded.figures), ("routed", folded.routed))
            }
            found.append({"edits": count, "lambda": folded.known, **shares})
    columns = ["edits#", "", *(f"{name}#" for name in FIGURES), "lambda#"]
    rows = [
        [
            one["edits"],
            kind,
            *(f"{100 * one[kind][name]:.1f}" for name in FIGURES),
            one["lambda"] if kind == "folded" else "",
        ]
        for one in found
        for kind in ("folded", "routed")
    ]
    show("", columns, rows)
    write(chosen.json, {"found": found})


if __name__ == "__main__":
    main()
