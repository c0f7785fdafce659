"""What an edit costs: `python -m benchmarks.edit_speed [--edits 200] [--far 1000] [--json FILE]`

The authors' procedure (`authors_procedure.py`) beside the product on the demo base: the same edits, each method in a
process of its own, one after the other. Seconds per edit are means over three edits that end at t = 3, 50 and 200; so
that this takes minutes and not hours, the authors' neurons in between are trained on cached keys, which are the same
numbers. `same work` is the product with the authors' recipe; the default learns three sequences for each edit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.authors_procedure import AuthorsProcedure
from benchmarks.measuring import peak_megabytes, show, write
from scen_cli import Editor, load_base, load_suite, new_project
from scen_cli.data.entries import Entry
from scen_cli.data.records import EditRecord, SourceLine
from scen_cli.data.suites import Suite
from scen_cli.editing.edit_run import plan, train
from scen_cli.recipe import make_recipe

LAYER, TIMED = 2, 3
# The authors' steps, at rates that suit a base of d = 96 (benchmarks/LOG.md).
RATES = {"expert_lr": 1e-2, "expert_steps": 10, "neuron_lr": 1e-2, "neuron_steps": 20}
METHODS: dict[str, dict[str, Any]] = {
    "authors' procedure": {},
    "product, same work": {"recipe": "paper", "changes": RATES},
    "product, full experts": {"changes": {"expert": "full"}},
    "product": {},
    "product, --batch 32": {"batch": 32},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--far", type=int, default=1000, help="edits of the last method but one, for how it grows")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--method", choices=METHODS, help="one method alone, as JSON")
    chosen = parser.parse_args()
    if chosen.method:
        print(json.dumps(_measure(chosen.method, chosen.edits, chosen.far)))
        return
    found = {}
    for method in METHODS:
        command = [sys.executable, "-m", "benchmarks.edit_speed", "--method", method]
        command += ["--edits", str(chosen.edits), "--far", str(chosen.far)]
        found[method] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"{method}: {found[method]}", file=sys.stderr, flush=True)
    places = [3, 50, chosen.edits]
    authors = found["authors' procedure"]["seconds"]
    show(
        f"demo base, {chosen.edits} edits; seconds per edit at t, and how many times less than the authors'",
        ["", *(f"t = {t}#" for t in places), "bytes per edit#", "peak MB#", "Reliability#", "Generality#"],
        [
            [
                method,
                *(f"{one['seconds'][str(t)]:.4f} ({authors[str(t)] / one['seconds'][str(t)]:.1f})" for t in places),
                *(f"{one['bytes']:,.0f}", f"{one['peak_mb']:.0f}", one["reliability"], one["generality"]),
            ]
            for method, one in found.items()
        ],
    )
    growth = found["product"]["seconds"]
    print(f"product: edit {chosen.far} took {growth[str(chosen.far)] / growth['10']:.2f} times as long as edit 10")
    write(chosen.json, {"edits": chosen.edits, "seed": 0, "rates": RATES, "methods": found})


def _measure(method: str, edits: int, far: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    suite = load_suite("demo")
    with tempfile.TemporaryDirectory() as folder:
        run = _authors if method == "authors' procedure" else _product
        return {**run(suite, edits, far if method == "product" else edits, Path(folder), **METHODS[method])}


def _authors(suite: Suite, edits: int, _far: int, folder: Path) -> dict[str, Any]:
    base = load_base("demo", device="cpu")
    recipe = make_recipe("paper", RATES)
    editor = Editor(new_project(folder / "p", "demo", recipe=recipe, base=base), base=base)  # for template and keys
    method = AuthorsProcedure(base, editor.template, LAYER, recipe, folder)
    records = suite.edits[:edits]
    keys = editor.keys([record.prompt for record in records])
    took: list[float] = []
    timed = {t - back for t in (TIMED, 50, edits) for back in range(TIMED)}
    torch.manual_seed(0)
    for number, record in enumerate(records, start=1):
        started = time.perf_counter()
        method.edit(record.prompt, record.target, None if number in timed else keys[:number])
        took.append(time.perf_counter() - started)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / edits
    return {**_costs(took, size, (TIMED, 50, edits)), **_figures(method.answer, records)}


def _product(
    suite: Suite, edits: int, far: int, folder: Path, recipe: str = "closed-form", changes: Any = None, batch: int = 1
) -> dict[str, Any]:
    base = load_base("demo", device="cpu")
    warm = Editor(new_project(folder / "w", "demo", recipe=recipe, changes=changes, base=base), base=base)
    warm.edit(suite.edits[-1])
    guard = warm.project.guard()
    project = new_project(folder / "p", "demo", recipe=recipe, changes=changes, guard=guard, base=base)
    warm.detach()
    editor = Editor(project, base=base)
    entries = [Entry(SourceLine("bench", n), record) for n, record in enumerate(suite.edits[:far], start=1)]
    planned = plan(editor, entries)
    took: list[float] = []
    figures: dict[str, Any] = {}
    with project.writing():
        before = time.perf_counter()
        for _made in train(editor, planned, batch):
            took.append(time.perf_counter() - before)
            if len(took) == edits:
                project.merge()
                figures = _figures(lambda prompt: editor.answer([prompt]).texts[0], suite.edits[:edits])
                size = sum(path.stat().st_size for path in (folder / "p" / "edits").iterdir()) / edits
                ledger = (folder / "p" / "scen.db").stat().st_size / edits
            before = time.perf_counter()
    if batch > 1:  # an expert's time is its batch's
        took = [statistics.mean(took[n - n % batch : n - n % batch + batch]) for n in range(len(took))]
    places = (TIMED, 50, edits, *((10, far) if far > edits else ()))
    return {**_costs(took, size, places), "ledger_bytes": ledger, **figures}


def _costs(took: list[float], size: float, places: tuple[int, ...]) -> dict[str, Any]:
    seconds = {str(t): statistics.mean(took[t - TIMED : t]) for t in places}
    return {"seconds": seconds, "bytes": size, "peak_mb": peak_megabytes()}


def _figures(answer: Any, records: list[EditRecord]) -> dict[str, Any]:
    asked = {
        "reliability": [(record.prompt, record.target) for record in records],
        "generality": [(text, record.target) for record in records for text in record.rephrases[:3]],
    }
    return {
        name: f"{sum(answer(prompt) == target for prompt, target in pairs)}/{len(pairs)}"
        for name, pairs in asked.items()
    }


if __name__ == "__main__":
    main()
