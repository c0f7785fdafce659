"""Measures tokens per second with and without edits: `python -m benchmarks.inference_speed [--edits 100 1000 10000]`

Uses the demo base (1.2 M parameters), a base of 34 M parameters with random weights, and both with edits, at batch 1
and 16. Prefill is `generate` with one token; decode is the time of 64 more tokens. Every prompt calls an edit, the most
expensive case. Base and edited models take turns. Prints medians over the rounds, and their ratio to the base's.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import make_parser, seconds_of
from benchmarks.page import report
from benchmarks.synthetic import larger_base, make_project
from scen_cli import Base, PatchedModel, load_base
from scen_cli.demo.world import Fact, further_facts

TOKENS, BATCHES = 64, (1, 16)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--edits", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    facts = further_facts(max(options.edits))
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        larger = larger_base(Path(folder) / "larger")
        found += _compare(Path(folder), "demo", 2, facts, options.edits, options.rounds)
        found += _compare(Path(folder), str(larger), 4, facts, options.edits, options.rounds)
    report("inference_speed", {"rounds": options.rounds, "tokens": TOKENS, "seed": 0, "found": found}, options.json)


def _compare(
    folder: Path, name: str, layer: int, facts: Sequence[Fact], sizes: Sequence[int], rounds: int
) -> Iterator[dict[str, Any]]:
    models: dict[str, PatchedModel] = {}
    base = load_base(name, device="cpu")
    for edits in (0, *sizes):
        own_base = load_base(name, device="cpu")
        project = make_project(folder / f"{Path(name).name}{edits}", facts[:edits], own_base, name, layer)
        models[f"{edits} edits"] = PatchedModel(project, base=own_base)
    for batch in BATCHES:
        prompts = [fact.phrasings[0] for fact in facts[:batch]]
        ids, mask = next(iter(models.values())).encode(prompts)
        runs = {"base": _base_run(base, ids, mask)}
        runs |= {name: _patched_run(model, ids, mask) for name, model in models.items()}
        for edits, model in list(models.items())[1:]:
            assert None not in model.route(prompts).edits, f"{edits}: a prompt calls no edit"
        prefill = _medians(runs, 1, rounds)
        whole = _medians(runs, 1 + TOKENS, rounds)
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


def _base_run(base: Base, ids: torch.Tensor, mask: torch.Tensor) -> Callable[[int], object]:
    return lambda tokens: base.model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens
    )


def _patched_run(model: PatchedModel, ids: torch.Tensor, mask: torch.Tensor) -> Callable[[int], object]:
    return lambda tokens: model.generate(ids, mask, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)


def _medians(runs: dict[str, Callable[[int], object]], tokens: int, rounds: int) -> dict[str, float]:
    """Median seconds of each run. The runs take turns; the first two rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 2):
        for name, run in runs.items():
            seconds[name].append(seconds_of(partial(run, tokens)))
    return {name: statistics.median(times[2:]) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
