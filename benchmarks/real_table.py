"""Collects the figures of `real.sh`: `python -m benchmarks.real_table WORK [--json benchmarks/real/figures.json]`

The counts alone are kept: the published questions are not ours to copy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.measuring import make_parser
from benchmarks.page import report

SUITES = {
    "facts": "facts of this package",
    "zsre": "ZsRE",
    "zsre+paper": "ZsRE, recipe `paper`",
    "counterfact": "CounterFact",
    "counterfact+paper": "CounterFact, recipe `paper`",
}
PATCHED = {  # column: figure
    "reliability": "reliability",
    "generality": "generality",
    "contains": "generality-contains",
    "given": "generality-given-expert",
    "locality": "locality",
    "same_subject": "leak/same-subject",
    "swapped": "leak/swapped",
    "negated": "leak/negated",
    "same_relation": "leak/same-relation",
    "prefix": "robustness/prefix",
    "second_turn": "robustness/second-turn",
    "typo": "robustness/typo",
    "lower_case": "robustness/lower-case",
    "are_you_sure": "robustness/are-you-sure",
}


def row_of(file: Path) -> dict[str, Any]:
    """The counts of one evaluation."""
    result = json.loads(file.read_text(encoding="utf-8"))
    suite, _, edits = file.stem.rpartition("-")
    found = {column: result["figures"].get(figure, {}).get("patched") for column, figure in PATCHED.items()}
    counts = {column: [share["right"], share["total"]] if share else None for column, share in found.items()}
    base = result["figures"]["reliability"]["base"]
    return {
        "run": file.stem,
        "suite": SUITES[suite],
        "edits": int(edits),
        "theta": round(result["theta"], 4),
        "base": [base["right"], base["total"]],
        **counts,
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("work", type=Path)
    options = parser.parse_args()
    order = list(SUITES)
    rows = [row_of(file) for file in (options.work / "results").glob("*.json")]
    rows.sort(key=lambda row: (order.index(row["run"].rpartition("-")[0]), row["edits"]))
    report("figures", {"found": rows}, options.json)


if __name__ == "__main__":
    main()
