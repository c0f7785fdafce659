"""Which experts are good enough? `python -m benchmarks.expert_sweep [--base FOLDER] [--edits 200] [--json FILE]`

For each setting, the right expert given: edits whose target is learned, rephrases answered rightly (Generality), and
prompts behind a sentence and in a second turn that nothing was trained on; Adam steps and milliseconds for an edit.
`--base` is a folder that `scen study sft` wrote, whose `d_test.jsonl` has the edits; without it the demo's are used.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import show, write
from scen_cli import Editor, EditRecord, load_base, load_suite, new_project
from scen_cli.data.entries import read_entries
from scen_cli.evaluation.robustness import PREFIXES
from scen_cli.experts.fit import logits_of
from scen_cli.experts.prefix_cache import record_prefix
from scen_cli.experts.training_batch import ExpertTask, TrainingBatch
from scen_cli.model.base import Base
from scen_cli.model.expert_stack import Expert, add_low_rank, apply_full
from scen_cli.model.template import Prompt, SecondTurn
from scen_cli.recipe import RECIPES, make_recipe

BATCH, LAYER = 20, 2
FULL = {"expert": "full", "expert_lr": 1e-2}
SETTINGS: list[dict[str, Any]] = [
    {**FULL, "expert_steps": 10},
    {**FULL, "expert_steps": 20},
    {**FULL, "expert_steps": 30},
    {**FULL, "stop_when": "learned", "lead": 4},
    *({"rank": rank} for rank in (1, 2, 4, 8, 16, 32, "auto")),
    *({"low_rank_lr": rate} for rate in (0.03, 0.06, 0.15, 0.2)),
    *({"expert_steps": steps} for steps in (5, 10, 20, 30)),
    *({"stop_when": "learned", "lead": logit_margin} for logit_margin in (2, 4, 6)),
    {"prompt_augmentations": 0},
]


class MethodContext:
    """Experts that are given, not trained, each for its own lesson."""

    literal = rounded = False

    def __init__(self, experts: list[Expert]) -> None:
        self.experts = experts
        self.parameters: list[Tensor] = []
        self.rates: list[float] = []

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor:
        pairs = zip(hidden.chunk(len(self.experts)), output.chunk(len(self.experts)), self.experts, strict=True)
        return torch.cat(
            [
                apply_full(expert, projection, one) if isinstance(expert, Tensor) else add_low_rank(one, out, expert)
                for one, out, expert in pairs
            ]
        )

    def expert(self, lesson: int) -> Expert:
        return self.experts[lesson]

    def keep(self, lessons: Tensor) -> None:
        raise NotImplementedError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    base = load_base(str(chosen.base or "demo"), device="cpu")
    if chosen.base:
        records = [entry.record for entry in read_entries(str(chosen.base / "d_test.jsonl")) if entry.record]
    else:
        records = load_suite("demo").edits
    found = []
    for setting in SETTINGS:
        found.append({"setting": setting, **_try(base, chosen.base, setting, records[: chosen.edits])})
        print(found[-1], flush=True)
    name = chosen.base.name if chosen.base else "demo"
    default = ", ".join(f"{one} {getattr(RECIPES['closed-form'], one)}" for one in ("rank", "low_rank_lr"))
    show(
        f"{name}, {chosen.edits} edits, the right expert given (default: low-rank, {default}, "
        f"{RECIPES['closed-form'].expert_steps} steps)",
        ["setting", "learned#", "rephrases#", "otherwise put#", "steps#", "ms per edit#", "mean rank#"],
        [
            [", ".join(f"{name} {value}" for name, value in one["setting"].items())]
            + [one[name] for name in ("learned", "rephrases", "otherwise")]
            + [f"{one['steps']:.1f}", f"{one['ms']:.0f}", f"{one['rank']:.1f}"]
            for one in found
        ],
    )
    write(
        chosen.json,
        {"base": name, "edits": chosen.edits, "seed": 0, "found": found},
    )


def _try(base: Base, folder: Path | None, setting: dict[str, Any], records: list[EditRecord]) -> dict[str, Any]:
    recipe = make_recipe("closed-form", setting)
    project_recipe = recipe.model_copy(update={"index": "key", "false_activation": None})  # needs no guard
    with tempfile.TemporaryDirectory() as place:
        project = new_project(f"{place}/p", str(folder or "demo"), LAYER, recipe=project_recipe, base=base)
        editor = Editor(project, base=base)
        started = time.perf_counter()
        fits = []
        for start in range(0, len(records), BATCH):
            fits += [one.fit for one in editor.fit([[record] for record in records[start : start + BATCH]])]
        seconds = time.perf_counter() - started
        experts = [fit.expert for fit in fits]
        asked = {
            "rephrases": [list(record.rephrases[:3]) for record in records],
            "otherwise": [_otherwise(records, place) for place in range(len(records))],
        }
        shares = {name: _right(editor, experts, records, prompts) for name, prompts in asked.items()}
        ranks = [0 if isinstance(one, Tensor) else len(one.a) for one in experts]
        learned = sum(not any(fit.wrong_tokens) for fit in fits)
    return {
        "learned": f"{learned}/{len(records)}",
        **shares,
        "steps": sum(len(fit.losses) for fit in fits) / len(fits),
        "ms": 1000 * seconds / len(records),
        "rank": sum(ranks) / len(ranks),
    }


def _otherwise(records: list[EditRecord], place: int) -> list[Prompt]:
    record, earlier = records[place], records[place - 1]
    turn = SecondTurn(earlier.prompt, earlier.target, record.prompt)
    return [f"{PREFIXES[place % len(PREFIXES)]} {record.prompt}", turn]


def _right(editor: Editor, experts: list[Expert], records: list[EditRecord], prompts: list[list[Prompt]]) -> str:
    """How many of each record's prompts its expert answers rightly: greedy decoding gives exactly the target if, and
    only if, each of its tokens is the likeliest, given those before it."""
    right = total = 0
    for start in range(0, len(records), BATCH):
        some = range(start, min(start + BATCH, len(records)))
        lessons = [ExpertTask([editor.sample(text, records[n].target) for text in prompts[n]]) for n in some]
        batch = TrainingBatch.of(lessons, editor.base.device)
        prefix = record_prefix(editor.model, editor.edited, batch.input_ids)
        with torch.no_grad():
            given = MethodContext([experts[n] for n in some])
            _losses, graded = batch.grade(logits_of(editor.model, editor.edited, batch, prefix, given))
        right += sum(not wrong for one in graded for wrong in one.wrong_tokens)
        total += sum(len(one.wrong_tokens) for one in graded)
    return f"{right}/{total}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
