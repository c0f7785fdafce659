"""Compares edits merged into the weights with routed edits: `python -m benchmarks.merged_edits [--json FILE]`

Uses the demo base with its first 10, 100 and 500 edits, and the metrics of `scen export --merge-into-weights`. Prints a
table; FILE also has the chosen lambda.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.measuring import demo_editor, make_edits, make_parser
from benchmarks.page import report
from scen_cli.data.suites import demo_edits
from scen_cli.evaluation.samples import PAPER_ROLES
from scen_cli.export.fold_weights import fold

EDITS = (10, 100, 500)


def main() -> None:
    options = make_parser(__doc__).parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        editor = demo_editor(Path(folder) / "project", [])
        for start, end in zip((0, *EDITS), EDITS, strict=False):
            make_edits(editor, demo_edits()[start:end], first=start + 1)
            with editor.snapshot() as patch:
                folded = fold(editor, patch, None, print)
            shares = {
                kind: {name: figures[name].patched.value for name in PAPER_ROLES}
                for kind, figures in (("folded", folded.figures), ("routed", folded.routed))
            }
            found.append({"edits": end, "lambda": folded.ridge_lambda, **shares})
    report("merged_edits", {"found": found}, options.json)


if __name__ == "__main__":
    main()
