"""The very first edit, where the authors' procedure has no earlier ones to run: `python -m benchmarks.first_edit`

Seconds for edit 1 by the authors' procedure and by the product, on the demo base (layer 2 of 4) and on a base of 34 M
parameters with random weights (layer 5 of 8, as deep as the authors' 20 of 32). `same work` is the authors' recipe:
one sequence, 10 steps. The default learns three sequences of 95 tokens together, in 15 steps and more. Medians of 5
first edits, the methods in turns, after one of each that is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.authors_procedure import AuthorsProcedure
from benchmarks.edit_speed import RATES
from benchmarks.measuring import show, write
from benchmarks.synthetic import guard_file, larger_base
from scen_cli import Editor, load_base, load_suite, new_project
from scen_cli.data.records import EditRecord
from scen_cli.model.base import Base
from scen_cli.recipe import make_recipe

ROUNDS = 5
# A base with random weights need not learn anything: what an edit costs is the same.
SAME = make_recipe("paper", {**RATES, "require_learned": "false"})
METHODS = {"product, same work": SAME, "product": make_recipe("closed-form", {"require_learned": "false"})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        larger = larger_base(Path(folder) / "larger")
        for name, layer in (("demo", 2), (str(larger), 5)):
            found += _compare(Path(folder), name, layer)
    lines = [[one["base"], one["method"], f"{one['seconds']:.4f} ({one['times_less']:.1f})"] for one in found]
    show("seconds for the first edit (how many times less)", ["base", "method", "seconds#"], lines)
    write(chosen.json, {"rounds": ROUNDS, "seed": 0, "found": found})


def _compare(folder: Path, name: str, layer: int) -> list[dict[str, Any]]:
    base, record = load_base(name, device="cpu"), load_suite("demo").edits[0]
    guard = new_project(folder / f"{layer}", name, layer, guard=guard_file(folder), base=base).guard()
    took: dict[str, list[float]] = {"authors' procedure": [], **{method: [] for method in METHODS}}
    for number in range(ROUNDS + 1):
        for method in took:
            place = folder / f"{layer}-{number}-{method.replace(' ', '-')}"
            run = _ready(base, name, layer, method, place, guard, record)
            started = time.perf_counter()
            run()
            took[method].append(time.perf_counter() - started)
    medians = {method: statistics.median(seconds[1:]) for method, seconds in took.items()}
    authors = medians["authors' procedure"]
    return [
        {"base": Path(name).name, "method": method, "seconds": seconds, "times_less": authors / seconds}
        for method, seconds in medians.items()
    ]


def _ready(
    base: Base, name: str, layer: int, method: str, place: Path, guard: Any, record: EditRecord
) -> Callable[[], object]:
    """A fresh project, or the authors' procedure, about to make its first edit."""
    recipe = METHODS.get(method, SAME)
    editor = Editor(new_project(place, name, layer, recipe=recipe, guard=guard, base=base), base=base)
    if method in METHODS:
        return lambda: editor.edit(record)
    authors = AuthorsProcedure(base, editor.template, layer, recipe, place)
    return lambda: authors.edit(record.prompt, record.target)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
