"""Does a patched model answer as fast as its base? `python -m benchmarks.inference_speed [--edits 100 1000 10000]`

Tokens per second of the demo base, and of the same with edits, at batch 1 and 16. Prefill is `generate` of one token;
decode is what 64 tokens more take. Every prompt calls an edit, which is the dearest case. Base and patched models
take turns, and figures are medians over the rounds; the ratio is that of the medians.
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

from benchmarks.measuring import peak_megabytes, show, write
from benchmarks.synthetic import make_project
from scen_cli import load_base, new_project
from scen_cli.demo.world import further_facts
from scen_cli.patched_model import PatchedModel

TOKENS, BATCHES = 64, (1, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    facts = further_facts(max(BATCHES))
    base = load_base("demo", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, PatchedModel] = {}
        for edits in (0, *chosen.edits):
            own = load_base("demo", device="cpu")
            place = Path(folder) / str(edits)
            project = make_project(place, edits, own) if edits else new_project(place, "demo", base=own)
            models[f"{edits} edits"] = PatchedModel(project, base=own)
        rows, found = [], []
        for batch in BATCHES:
            prompts = [fact.phrasings[0] for fact in facts[:batch]]
            ids, mask = next(iter(models.values())).encode(prompts)
            runs = {"base": _base_run(base, ids, mask)}
            runs |= {name: _patched_run(model, ids, mask) for name, model in models.items()}
            for name, model in list(models.items())[1:]:
                assert None not in model.route(prompts).edits, f"{name}: a prompt calls no edit"
            prefill = _turns(runs, 1, chosen.rounds)
            whole = _turns(runs, 1 + TOKENS, chosen.rounds)
            for name in runs:
                speed = {
                    "prefill": ids.numel() / prefill[name],
                    "decode": batch * TOKENS / (whole[name] - prefill[name]),
                }
                of_base = {
                    "prefill": prefill["base"] / prefill[name],
                    "decode": (whole["base"] - prefill["base"]) / (whole[name] - prefill[name]),
                }
                found.append({"batch": batch, "model": name, "tokens_per_second": speed, "of_base": of_base})
                cells = [f"{speed[kind]:.0f} ({of_base[kind]:.3f})" for kind in ("prefill", "decode")]
                rows.append([batch, name, *cells])
    show("tokens per second (share of the base's)", ["batch#", "model", "prefill#", "decode#"], rows)
    print(f"peak memory of all models together: {peak_megabytes():.0f} MB")
    write(chosen.json, {"rounds": chosen.rounds, "tokens": TOKENS, "seed": 0, "found": found})


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
