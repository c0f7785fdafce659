"""Times the first edit, with no earlier edits to train against: `python -m benchmarks.first_edit [--json FILE]`

Seconds for edit 1 by the authors' procedure and by the product, on the demo base (layer 2 of 4) and on a base of 34 M
parameters with random weights (layer 5 of 8, the same relative depth as the authors' layer 20 of 32). `same work` is
the authors' recipe: one sequence, 10 steps. The default trains three sequences of 95 tokens together, for 15 steps or
more. The figures are medians of 5 first edits; the methods take turns, and the first round does not count.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.authors_procedure import AuthorsProcedure
from benchmarks.edit_speed import RATES
from benchmarks.measuring import make_parser, seconds_of
from benchmarks.page import report
from benchmarks.synthetic import guard_file, larger_base
from scen_cli import Base, Editor, EditRecord, load_base, load_suite, new_project
from scen_cli.recipe import make_recipe

ROUNDS = 5
AUTHORS = "authors' procedure"
# A base with random weights may fail to learn the target. The cost of an edit is the same.
SAME = make_recipe("paper", {**RATES, "require_learned": "false"})
METHODS = {"product, same work": SAME, "product": make_recipe("closed-form", {"require_learned": "false"})}


def main() -> None:
    options = make_parser(__doc__).parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        larger = larger_base(Path(folder) / "larger")
        for name, layer in (("demo", 2), (str(larger), 5)):
            found += _compare(Path(folder), name, layer)
    report("first_edit", {"rounds": ROUNDS, "seed": 0, "found": found}, options.json)


def _compare(folder: Path, name: str, layer: int) -> list[dict[str, Any]]:
    base, record = load_base(name, device="cpu"), load_suite("demo").edits[0]
    guard = new_project(folder / f"{layer}", name, layer, guard=guard_file(folder), base=base).guard()
    seconds: dict[str, list[float]] = {AUTHORS: [], **{method: [] for method in METHODS}}
    for number in range(ROUNDS + 1):
        for method in seconds:
            project = folder / f"{layer}-{number}-{method.replace(' ', '-')}"
            seconds[method].append(seconds_of(_prepare(base, name, layer, method, project, guard, record)))
    medians = {method: statistics.median(times[1:]) for method, times in seconds.items()}
    return [
        {"base": Path(name).name, "method": method, "seconds": median, "times_less": medians[AUTHORS] / median}
        for method, median in medians.items()
    ]


def _prepare(
    base: Base, name: str, layer: int, method: str, project: Path, guard: Any, record: EditRecord
) -> Callable[[], object]:
    """A function that makes the first edit of a new project, or of the authors' procedure."""
    recipe = METHODS.get(method, SAME)
    editor = Editor(new_project(project, name, layer, recipe=recipe, guard=guard, base=base), base=base)
    if method == AUTHORS:
        authors = AuthorsProcedure(base, editor.template, layer, recipe, project)
        return lambda: authors.edit(record.prompt, record.target)

    def edit() -> None:
        with editor.project.writing():
            editor.edit(record)

    return edit


if __name__ == "__main__":
    main()
