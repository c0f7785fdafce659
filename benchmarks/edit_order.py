"""Does the order of edits matter? `python benchmarks/edit_order.py [--edits 500] [--shuffles 5]`

The same edits of the demo suite, made in their order and in shuffled ones (seeded), each scored after the last edit.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from dataclasses import replace

import torch

from scen_cli import Editor, load_base, load_suite, new_project
from scen_cli.data.entries import Entry
from scen_cli.data.records import SourceLine
from scen_cli.editing.edit_run import plan, train
from scen_cli.evaluation.evaluate_project import evaluate

FIGURES = ("reliability", "generality", "locality", "near-miss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--shuffles", type=int, default=5)
    chosen = parser.parse_args()
    base, suite = load_base("demo", device="cpu"), load_suite("demo")
    shares: dict[str, list[float]] = {name: [] for name in FIGURES}
    for shuffle in range(chosen.shuffles + 1):
        edits = suite.edits[: chosen.edits]
        if shuffle:
            random.Random(shuffle).shuffle(edits)
        with tempfile.TemporaryDirectory() as folder:
            editor = Editor(new_project(f"{folder}/p", "demo", base=base), base=base)
            planned = plan(editor, [Entry(SourceLine("suite", n), record) for n, record in enumerate(edits, 1)])
            with editor.project.writing():
                for _made in train(editor, planned):
                    pass
                editor.project.merge()
            found = evaluate(editor, replace(suite, edits=edits)).figures
            editor.detach()
        print(f"shuffle {shuffle}: " + ", ".join(f"{name} {found[name].patched}" for name in FIGURES), flush=True)
        for name in FIGURES:
            shares[name].append(100 * (found[name].patched.value or 0))
    for name, values in shares.items():
        print(f"{name}: {min(values):.2f} to {max(values):.2f}, points apart: {max(values) - min(values):.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
