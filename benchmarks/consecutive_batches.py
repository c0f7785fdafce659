"""COMEBA-HK in consecutive batches on the demo base: what the first batch still answers after each further one, and
what its hook layer still gives that batch's keys; sums and means over series of eleven batches, each of other edits:
`python -m benchmarks.consecutive_batches [BATCH] [SERIES]`"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from benchmarks.measuring import show
from scen_cli.baselines.catalogue import ready_method
from scen_cli.baselines.closed_form_memory import Contexts, at_places, recorded
from scen_cli.baselines.generate import answer
from scen_cli.baselines.method import MethodContext, attached
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import demo_edits
from scen_cli.editing.create_project import DEFAULT_TEMPLATE
from scen_cli.model.base import load_base
from scen_cli.model.template import make_template
from scen_cli.neurons.build_guard import unedited_prompts

SETTINGS = {"at": "last", "contexts": 1, "known": 15.0}


def main(batch: int = 30, series: int = 1, batches: int = 11) -> None:
    torch.set_num_threads(1)
    base = load_base("demo", device="cpu")
    template = make_template(base.tokenizer, base.model, DEFAULT_TEMPLATE)
    given = MethodContext(base, template, 2, unedited_prompts(base, template, 0, None))
    size = batch * batches
    runs = [_run(given, demo_edits()[start * size : (start + 1) * size], batch) for start in range(series)]
    rows: list[list[object]] = []
    for number in range(batches):
        right, moved, alpha = zip(*(run[number] for run in runs), strict=True)
        told = [f"{sum(right)}/{batch * series}", f"{sum(moved) / series:.3f}", f"{sum(alpha) / series:.2f}"]
        rows.append([(number + 1) * batch, *told])
    columns = ["edits#", "first batch right#", "its hook output moved by#", "alpha#"]
    show(f"COMEBA-HK, {series} series of batches of {batch}, layer 2 of the demo base", columns, rows)


def _run(given: MethodContext, edits: Sequence[EditRecord], batch: int) -> list[tuple[int, float, float]]:
    """After each batch: what is right of the first, how far its hook output has moved, and alpha."""
    base = given.base
    method = ready_method("comeba-hk", given, {**SETTINGS, "batch": batch})
    contexts = Contexts.of(given, edits[:batch], 1, at_subject=False)
    with torch.no_grad(), recorded(method.layers[0].down_proj) as seen:
        base.model(input_ids=contexts.examples.ids, use_cache=False)
    keys = at_places(seen[method.layers[0].down_proj][0], contexts)
    first, found = None, []
    for start in range(0, len(edits), batch):
        method.fit(edits[start : start + batch])
        given_to_first = keys @ method.deltas[0].T
        first = given_to_first if first is None else first
        with attached(method):
            said = answer(base, given.template, [edit.prompt for edit in edits[:batch]], method)
        right = sum(text == edit.target for text, edit in zip(said, edits, strict=False))
        found.append((right, float((given_to_first - first).norm() / first.norm()), method.alphas[0]))
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
