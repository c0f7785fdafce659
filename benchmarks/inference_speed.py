"""Does a patched model answer as fast as its base? `python -m benchmarks.inference_speed [--edits 100 1000 10000]`

Tokens per second of the demo base (1.2 M parameters), of one of 34 M with random weights, and of both with edits, at
batch 1 and 16. Prefill is `generate` of one token;
decode is what 64 tokens more take. Every prompt calls an edit, which is the dearest case. Base and patched models
take turns, and figures are medians over the rounds; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import show, write
from benchmarks.synthetic import larger_base, make_project
from scen_cli import load_base
from scen_cli.demo.world import Fact, further_facts
from scen_cli.editing.patched_model import PatchedModel

TOKENS, BATCHES = 64, (1, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    facts = further_facts(max(chosen.edits))
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        larger = larger_base(Path(folder) / "larger")
        found += _compare(Path(folder), "demo", 2, facts, chosen.edits, chosen.rounds)
        found += _compare(Path(folder), str(larger), 4, facts, chosen.edits, chosen.rounds)
    columns = ["base", "batch#", "model", "prefill#", "decode#"]
    rows = [
        [one["base"], one["batch"], one["model"]]
        + [f"{one['tokens_per_second'][kind]:.0f} ({one['of_base'][kind]:.3f})" for kind in ("prefill", "decode")]
        for one in found
    ]
    show("tokens per second (share of the base's)", columns, rows)
    write(chosen.json, {"rounds": chosen.rounds, "tokens": TOKENS, "seed": 0, "found": found})


def _compare(
    folder: Path, name: str, layer: int, facts: Sequence[Fact], sizes: Sequence[int], rounds: int
) -> Iterator[dict[str, Any]]:
    models: dict[str, PatchedModel] = {}
    base = load_base(name, device="cpu")
    for edits in (0, *sizes):
        own = load_base(name, device="cpu")
        project = make_project(folder / f"{Path(name).name}{edits}", facts[:edits], own, name, layer)
        models[f"{edits} edits"] = PatchedModel(project, base=own)
    for batch in BATCHES:
        prompts = [fact.phrasings[0] for fact in facts[:batch]]
        ids, mask = next(iter(models.values())).encode(prompts)
        runs = {"base": _base_run(base, ids, mask)}
        runs |= {name: _patched_run(model, ids, mask) for name, model in models.items()}
        for edits, model in list(models.items())[1:]:
            assert None not in model.route(prompts).edits, f"{edits}: a prompt calls no edit"
        prefill = _turns(runs, 1, rounds)
        whole = _turns(runs, 1 + TOKENS, rounds)
        for run in runs:
            decode = whole[run] - prefill[run]
            yield {
                "base": Path(name).name,
                "batch": batch,
                "model": run,
                "tokens_per_second": {"prefill": int(mask.sum()) / prefill[run], "decode": batch * TOKENS / decode},
                "of_base": {
                    "prefill": prefill["base"] / prefill[run],
                    "decode": (whole["base"] - prefill["base"]) / decode,
                },
            }


def _base_run(base: Any, ids: torch.Tensor, mask: torch.Tensor) -> Callable[[int], object]:
    return lambda tokens: base.model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens
    )


def _patched_run(model: PatchedModel, ids: torch.Tensor, mask: torch.Tensor) -> Callable[[int], object]:
    return lambda tokens: model.generate(ids, mask, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)


def _turns(runs: dict[str, Callable[[int], object]], tokens: int, rounds: int) -> dict[str, float]:
    """Median seconds of each, which take turns; the first two rounds are not counted."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 2):
        for name, run in runs.items():
            started = time.perf_counter()
            run(tokens)
            took[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[2:]) for name, seconds in took.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
