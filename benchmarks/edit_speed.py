"""Times edits by the authors' procedure and by the product: `python -m benchmarks.edit_speed [--edits 200]`

The same edits on the demo base. Every method runs in its own process, one after the other. `authors' procedure` is
`authors_procedure.py`; `same work` is the product with the authors' recipe; the default recipe trains three sequences
per edit. Prints seconds per edit (means over the three edits that end at t = 3, 50 and 200), bytes per edit, peak
memory, Reliability and Generality; `--json FILE` writes them. To finish in minutes instead of hours, the authors'
neurons between these t train on cached keys, which hold the same numbers.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.authors_procedure import AuthorsProcedure
from benchmarks.measuring import make_parser, peak_megabytes, run_module
from benchmarks.page import report
from scen_cli import Editor, EditRecord, Suite, load_base, load_suite, new_project
from scen_cli.data.entries import Entry
from scen_cli.data.records import SourceLine
from scen_cli.recipe import make_recipe

LAYER, TIMED = 2, 3
# The authors' steps, at rates that fit a base of d = 96 (benchmarks/LOG.md).
RATES = {"expert_lr": 1e-2, "expert_steps": 10, "neuron_lr": 1e-2, "neuron_steps": 20}
METHODS: dict[str, dict[str, Any]] = {
    "authors' procedure": {},
    "product, same work": {"recipe": "paper", "changes": RATES},
    "product, full experts": {"changes": {"expert": "full"}},
    "product": {},
    "product, --batch 32": {"batch": 32},
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--far", type=int, default=1000, help="edits of `product`, to see how the time grows")
    parser.add_argument("--method", choices=METHODS, help="measure only this method, and print JSON")
    options = parser.parse_args()
    if options.method:
        print(json.dumps(_measure(options.method, options.edits, options.far)))
        return
    methods = {}
    for method in METHODS:
        sizes = ("--edits", options.edits, "--far", options.far)
        methods[method] = run_module("benchmarks.edit_speed", "--method", method, *sizes)
        print(f"{method}: {methods[method]}", file=sys.stderr, flush=True)
    report("edit_speed", {"edits": options.edits, "seed": 0, "rates": RATES, "methods": methods}, options.json)


def _measure(method: str, edits: int, far: int) -> dict[str, Any]:
    suite = load_suite("demo")
    with tempfile.TemporaryDirectory() as folder:
        if method == "authors' procedure":
            return _authors(suite, edits, Path(folder))
        return _product(suite, edits, far if method == "product" else edits, Path(folder), **METHODS[method])


def _authors(suite: Suite, edits: int, folder: Path) -> dict[str, Any]:
    base = load_base("demo", device="cpu")
    recipe = make_recipe("paper", RATES)
    editor = Editor(new_project(folder / "p", "demo", recipe=recipe, base=base), base=base)  # for template and keys
    method = AuthorsProcedure(base, editor.template, LAYER, recipe, folder)
    records = suite.edits[:edits]
    keys = editor.keys([record.prompt for record in records])
    timed = {t - back for t in (TIMED, 50, edits) for back in range(TIMED)}
    torch.manual_seed(0)
    seconds = []
    for number, record in enumerate(records, start=1):
        cached = None if number in timed else keys[:number]
        started = time.perf_counter()
        method.edit(record.prompt, record.target, cached)
        seconds.append(time.perf_counter() - started)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / edits
    return {**_costs(seconds, size, (TIMED, 50, edits)), **_metrics(method.answer, records)}


def _product(
    suite: Suite, edits: int, far: int, folder: Path, recipe: str = "closed-form", changes: Any = None, batch: int = 1
) -> dict[str, Any]:
    base = load_base("demo", device="cpu")
    warm_up = Editor(new_project(folder / "w", "demo", recipe=recipe, changes=changes, base=base), base=base)
    with warm_up.project.writing():
        warm_up.edit(suite.edits[-1])
    guard = warm_up.project.guard()
    project = new_project(folder / "p", "demo", recipe=recipe, changes=changes, guard=guard, base=base)
    warm_up.detach()
    editor = Editor(project, base=base)
    entries = [Entry(SourceLine("bench", n), record) for n, record in enumerate(suite.edits[:far], start=1)]
    plan = editor.plan(entries)
    seconds: list[float] = []
    metrics: dict[str, Any] = {}
    with project.writing():
        started = time.perf_counter()
        for _made in editor.train(plan, batch):
            seconds.append(time.perf_counter() - started)
            if len(seconds) == edits:
                metrics = _metrics(lambda prompt: editor.answer([prompt]).texts[0], suite.edits[:edits])
                size = sum(path.stat().st_size for path in (folder / "p" / "edits").iterdir()) / edits
                ledger = (folder / "p" / "scen.db").stat().st_size / edits
            started = time.perf_counter()
    if batch > 1:  # the time of an expert is the mean of its batch
        seconds = [statistics.mean(seconds[n - n % batch : n - n % batch + batch]) for n in range(len(seconds))]
    ends = (TIMED, 50, edits, *((10, far) if far > edits else ()))
    return {**_costs(seconds, size, ends), "ledger_bytes": ledger, **metrics}


def _costs(seconds: list[float], size: float, ends: tuple[int, ...]) -> dict[str, Any]:
    means = {str(t): statistics.mean(seconds[t - TIMED : t]) for t in ends}
    return {"seconds": means, "bytes": size, "peak_mb": peak_megabytes()}


def _metrics(answer: Callable[[str], str], records: list[EditRecord]) -> dict[str, str]:
    questions = {
        "reliability": [(record.prompt, record.target) for record in records],
        "generality": [(text, record.target) for record in records for text in record.rephrases[:3]],
    }
    return {
        name: f"{sum(answer(prompt) == target for prompt, target in pairs)}/{len(pairs)}"
        for name, pairs in questions.items()
    }


if __name__ == "__main__":
    main()
