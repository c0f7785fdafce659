"""The recipes on the demo suite: `python -m benchmarks.recipes [--edits 100] [--json FILE]`

The same as `scen init --model demo --recipe R`, `scen edit --suite demo --first 100 --keep-going`, `scen eval --suite
demo --quick`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import edit_in_order, show, write
from scen_cli import Editor, new_project
from scen_cli.data.suites import load_suite
from scen_cli.evaluation.evaluate_project import evaluate
from scen_cli.model.base import load_base
from scen_cli.recipe import DEFAULT_RECIPE

RECIPES = (DEFAULT_RECIPE, "joint", "key", "paper")
COLUMNS = ["recipe", "Reliability", "Generality", "Locality", "fired on unedited prompts"]


def measure(recipe: str, edits: int) -> dict[str, Any]:
    suite, base = load_suite("demo"), load_base("demo", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        editor = Editor(new_project(Path(folder) / "project", "demo", recipe=recipe, base=base), base=base)
        edit_in_order(editor, suite.edits[:edits])
        figures = evaluate(editor, suite, quick=True).figures
    shares = [figures[name].patched for name in ("reliability", "generality", "locality")]
    shares.append(figures["locality"].fired)
    return {"recipe": recipe, "shares": [[share.right, share.total] for share in shares]}


def cells(one: dict[str, Any]) -> list[str]:
    return [f"`{one['recipe']}`", *(f"{100 * right / total:.1f} % ({right}/{total})" for right, total in one["shares"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(recipe, chosen.edits) for recipe in RECIPES]
    show("", COLUMNS, [[*cells(one)] for one in found])
    write(chosen.json, {"edits": chosen.edits, "found": found})


if __name__ == "__main__":
    main()
