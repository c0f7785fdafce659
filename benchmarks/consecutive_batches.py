"""Measures COMEBA-HK over consecutive batches: `python -m benchmarks.consecutive_batches [BATCH] [SERIES]`

On the demo base, in SERIES series of eleven batches of BATCH different edits each. Prints, after each batch: the edits
of the first batch that are still answered rightly, how far the output of its hook layer has moved for their keys, and
alpha; sums and means over the series.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from benchmarks.measuring import markdown
from scen_cli.baselines.catalogue import prepared_method
from scen_cli.baselines.context import MethodContext, answer
from scen_cli.baselines.hook_method import recorded
from scen_cli.baselines.memit import EditContexts
from scen_cli.baselines.method import attached
from scen_cli.data.records import EditRecord
from scen_cli.data.suites import demo_edits
from scen_cli.model.base import load_base
from scen_cli.model.known_bases import DEFAULT_TEMPLATE
from scen_cli.model.template import make_template
from scen_cli.neurons.build_guard import unedited_prompts

SETTINGS = {"at": "last", "contexts": 1, "known": 15.0}


def main(batch: int = 30, series: int = 1, batches: int = 11) -> None:
    torch.set_num_threads(1)
    base = load_base("demo", device="cpu")
    template = make_template(base.tokenizer, base.model, DEFAULT_TEMPLATE)
    context = MethodContext(base, template, 2, unedited_prompts(base, template, 0, None))
    size = batch * batches
    runs = [_run(context, demo_edits()[start * size : (start + 1) * size], batch) for start in range(series)]
    rows: list[list[object]] = []
    for number in range(batches):
        right, moved, alpha = zip(*(run[number] for run in runs), strict=True)
        cells = [f"{sum(right)}/{batch * series}", f"{sum(moved) / series:.3f}", f"{sum(alpha) / series:.2f}"]
        rows.append([(number + 1) * batch, *cells])
    print(f"COMEBA-HK, {series} series of batches of {batch}, layer 2 of the demo base\n")
    print(markdown(["edits", "first batch right", "its hook output moved by", "alpha"], rows))


def _run(context: MethodContext, edits: Sequence[EditRecord], batch: int) -> list[tuple[int, float, float]]:
    """After each batch: right answers of the first batch, relative change of its hook output, and alpha."""
    base = context.base
    method = prepared_method("comeba-hk", context, {**SETTINGS, "batch": batch})
    contexts = EditContexts.of(context, edits[:batch], 1, at_subject=False)
    with torch.no_grad(), recorded(method.layers[0].down_proj) as inputs:
        base.model(input_ids=contexts.examples.ids, use_cache=False)
    keys = contexts.at_position(inputs[method.layers[0].down_proj][0])
    first, found = None, []
    for start in range(0, len(edits), batch):
        method.fit(edits[start : start + batch])
        output = keys @ method.deltas[0].T
        first = output if first is None else first
        with attached(method):
            answers = answer(base, context.template, [edit.prompt for edit in edits[:batch]], method)
        right = sum(text == edit.target for text, edit in zip(answers, edits, strict=False))
        found.append((right, float((output - first).norm() / first.norm()), method.alphas[0]))
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
