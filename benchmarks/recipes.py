"""Scores 100 demo edits with each recipe: `python -m benchmarks.recipes [--edits 100] [--json FILE]`

Does the same as `scen init --model demo --recipe R`, `scen edit --suite demo --first 100 --keep-going` and
`scen eval --suite demo --quick` for each recipe. Prints Reliability, Generality, Locality and the share of unedited
prompts on which a neuron fires; writes the counts to FILE.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import demo_editor, make_parser
from benchmarks.page import METRICS, report
from scen_cli import evaluate, load_suite
from scen_cli.recipe import DEFAULT_RECIPE

RECIPES = (DEFAULT_RECIPE, "joint", "key", "paper")


def measure(recipe: str, edits: int) -> dict[str, Any]:
    suite = load_suite("demo")
    with tempfile.TemporaryDirectory() as folder:
        editor = demo_editor(Path(folder) / "project", suite.edits[:edits], recipe=recipe)
        figures = evaluate(editor, suite, quick=True).figures
    shares = [*(figures[name].patched for name in METRICS), figures["locality"].fired]
    return {"recipe": recipe, "shares": [[share.right, share.total] for share in shares]}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--edits", type=int, default=100)
    options = parser.parse_args()
    found = [measure(recipe, options.edits) for recipe in RECIPES]
    report("recipes", {"edits": options.edits, "found": found}, options.json)


if __name__ == "__main__":
    main()
