"""Compares settings of experts with oracle routing: `python -m benchmarks.expert_sweep [--base FOLDER] [--edits 200]`

For each setting, with the right expert given: edits whose target is learned, rephrases answered rightly (Generality),
prompts behind a sentence and in a second turn that no expert was trained on; Adam steps and milliseconds per edit.
`--base` is a folder that `scen study sft` wrote; its `d_test.jsonl` holds the edits. Without it, the demo's edits are
used. Prints a table; `--json FILE` writes it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import make_parser, seconds_of
from benchmarks.page import report
from scen_cli import Base, Editor, EditRecord, load_base, load_suite, new_project
from scen_cli.data.entries import read_entries
from scen_cli.evaluation.robustness import PREFIXES
from scen_cli.experts.fit import ExpertTask, TrainingBatch, logits_of
from scen_cli.experts.prefix_cache import record_prefix
from scen_cli.model.expert_stack import Expert, add_low_rank, apply_full
from scen_cli.model.template import Prompt, SecondTurn
from scen_cli.recipe import make_recipe

BATCH, LAYER = 20, 2
FULL = {"expert": "full", "expert_lr": 1e-2}
SETTINGS: list[dict[str, Any]] = [
    {**FULL, "expert_steps": 10},
    {**FULL, "expert_steps": 20},
    {**FULL, "expert_steps": 30},
    {**FULL, "stop_when": "learned", "logit_margin": 4},
    *({"rank": rank} for rank in (1, 2, 4, 8, 16, 32, "auto")),
    *({"low_rank_lr": rate} for rate in (0.03, 0.06, 0.15, 0.2)),
    *({"expert_steps": steps} for steps in (5, 10, 20, 30)),
    *({"stop_when": "learned", "logit_margin": margin} for margin in (2, 4, 6)),
    {"prompt_augmentations": 0},
]


class FixedExperts:
    """Expert parameters that are not trained: expert `i` belongs to task `i` of the batch."""

    all_logits = rounded = False

    def __init__(self, experts: list[Expert]) -> None:
        self.experts = experts
        self.parameters: list[Tensor] = []
        self.rates: list[float] = []

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor:
        pairs = zip(hidden.chunk(len(self.experts)), output.chunk(len(self.experts)), self.experts, strict=True)
        return torch.cat(
            [
                apply_full(expert, projection, x) if isinstance(expert, Tensor) else add_low_rank(x, y, expert)
                for x, y, expert in pairs
            ]
        )

    def expert(self, task: int) -> Expert:
        return self.experts[task]

    def select(self, kept: Tensor) -> None:
        raise NotImplementedError


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--edits", type=int, default=200)
    options = parser.parse_args()
    base = load_base(str(options.base or "demo"), device="cpu")
    if options.base:
        records = [entry.record for entry in read_entries(str(options.base / "d_test.jsonl")) if entry.record]
    else:
        records = load_suite("demo").edits
    found = []
    for setting in SETTINGS:
        found.append({"setting": setting, **_try(base, options.base, setting, records[: options.edits])})
        print(found[-1], flush=True)
    name = options.base.name if options.base else "demo"
    report("expert_sweep", {"base": name, "edits": options.edits, "seed": 0, "found": found}, options.json)


def _try(base: Base, folder: Path | None, setting: dict[str, Any], records: list[EditRecord]) -> dict[str, Any]:
    recipe = make_recipe("closed-form", setting)
    recipe = recipe.model_copy(update={"index": "key", "false_activation": None})  # needs no guard
    with tempfile.TemporaryDirectory() as temporary:
        project = new_project(f"{temporary}/p", str(folder or "demo"), LAYER, recipe=recipe, base=base)
        editor = Editor(project, base=base)
        fits = []

        def fit_all() -> None:
            for start in range(0, len(records), BATCH):
                groups = [[record] for record in records[start : start + BATCH]]
                fits.extend(fitted.fit for fitted in editor.fit(groups))

        seconds = seconds_of(fit_all)
        experts = [fit.expert for fit in fits]
        prompts = {
            "rephrases": [list(record.rephrases[:3]) for record in records],
            "otherwise": [_other_contexts(records, index) for index in range(len(records))],
        }
        shares = {name: _right(editor, experts, records, texts) for name, texts in prompts.items()}
        ranks = [0 if isinstance(expert, Tensor) else len(expert.a) for expert in experts]
        learned = sum(not any(fit.wrong_tokens) for fit in fits)
    return {
        "learned": f"{learned}/{len(records)}",
        **shares,
        "steps": sum(len(fit.losses) for fit in fits) / len(fits),
        "ms": 1000 * seconds / len(records),
        "rank": sum(ranks) / len(ranks),
    }


def _other_contexts(records: list[EditRecord], index: int) -> list[Prompt]:
    """The prompt behind a sentence, and as the second turn after another edit's question."""
    record, earlier = records[index], records[index - 1]
    turn = SecondTurn(earlier.prompt, earlier.target, record.prompt)
    return [f"{PREFIXES[index % len(PREFIXES)]} {record.prompt}", turn]


def _right(editor: Editor, experts: list[Expert], records: list[EditRecord], prompts: list[list[Prompt]]) -> str:
    """The number of prompts that their experts answer rightly, as `RIGHT/TOTAL`.

    Greedy decoding gives exactly the target if and only if each of its tokens is the likeliest after those before it.
    """
    right = total = 0
    for start in range(0, len(records), BATCH):
        indices = range(start, min(start + BATCH, len(records)))
        tasks = [ExpertTask([editor.tokenize_pair(text, records[i].target) for text in prompts[i]]) for i in indices]
        batch = TrainingBatch.from_tasks(tasks, editor.base.device)
        prefix = record_prefix(editor.model, editor.edited, batch.input_ids)
        with torch.no_grad():
            fixed = FixedExperts([experts[i] for i in indices])
            _losses, statuses = batch.grade(logits_of(editor.model, editor.edited, batch, prefix, fixed))
        right += sum(not wrong for status in statuses for wrong in status.wrong_tokens)
        total += sum(len(status.wrong_tokens) for status in statuses)
    return f"{right}/{total}"


if __name__ == "__main__":
    main()
