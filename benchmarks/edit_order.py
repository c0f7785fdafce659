"""Measures how much the order of edits matters: `python -m benchmarks.edit_order [--edits 500] [--shuffles 5]`

Makes the same edits of the demo suite in their order and in seeded shuffled orders, and scores each project after its
last edit. Prints the metrics of each order and their range.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace

from benchmarks.measuring import make_parser
from scen_cli import Editor, load_base, load_suite, new_project
from scen_cli.data.entries import Entry
from scen_cli.data.records import SourceLine
from scen_cli.evaluation.evaluate_project import evaluate

FIGURES = ("reliability", "generality", "locality", "near-miss")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--shuffles", type=int, default=5)
    options = parser.parse_args()
    base, suite = load_base("demo", device="cpu"), load_suite("demo")
    shares: dict[str, list[float]] = {name: [] for name in FIGURES}
    for shuffle in range(options.shuffles + 1):
        edits = suite.edits[: options.edits]
        if shuffle:
            random.Random(shuffle).shuffle(edits)
        with tempfile.TemporaryDirectory() as folder:
            editor = Editor(new_project(f"{folder}/p", "demo", base=base), base=base)
            plan = editor.plan([Entry(SourceLine("suite", n), record) for n, record in enumerate(edits, 1)])
            with editor.project.writing():
                for _made in editor.train(plan):
                    pass
            figures = evaluate(editor, replace(suite, edits=edits)).figures
            editor.detach()
        print(f"shuffle {shuffle}: " + ", ".join(f"{name} {figures[name].patched}" for name in FIGURES), flush=True)
        for name in FIGURES:
            shares[name].append(100 * (figures[name].patched.value or 0))
    for name, values in shares.items():
        print(f"{name}: {min(values):.2f} to {max(values):.2f}, points apart: {max(values) - min(values):.2f}")


if __name__ == "__main__":
    main()
