"""Checks the stated rate of false activation on a real base and on questions that nobody here wrote.

`python -m benchmarks.false_activation SUITES [--edits 100] [--seeds 2]`: SUITES is the folder that `real_suites` wrote.
Each seed makes another guard from the question bank, and the neurons of the same ZsRE edits; experts get one step,
because no prompt is answered. Once with the edits' subjects, and once without: then nothing but theta keeps an edit
silent. Prints theta, the rate that the project states with its 95 % interval, and how many natural questions fired.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import make_edits, make_parser
from benchmarks.page import report
from scen_cli import Editor, EditRecord, load_base, load_suite, new_project
from scen_cli.data.suites import read_prompts

FAST = {"expert_steps": 1, "extra_steps": 0, "prompt_augmentations": 0, "require_learned": False}
BATCH = 64


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("suites", type=Path)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    base = load_base("smollm2", dtype="bfloat16")
    records = load_suite(str(options.suites / "zsre.jsonl")).edits[: options.edits]
    natural = read_prompts(options.suites / "natural.jsonl")
    found = []
    for has_subject in (True, False):
        edits = records if has_subject else [record.model_copy(update={"subject": None}) for record in records]
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                editor = Editor(new_project(f"{folder}/p", "smollm2", seed=seed, changes=FAST, base=base), base=base)
                found.append({"subjects": has_subject, "seed": seed, **_measure(editor, edits, natural)})
                editor.detach()
            print(found[-1], flush=True)
    report("false_activation", {"found": found}, options.json)


def _measure(editor: Editor, edits: list[EditRecord], natural: list[str]) -> dict[str, Any]:
    """Make the edits, and route the natural questions."""
    make_edits(editor, edits)
    threshold = editor.project.ledger.threshold()
    batches = [natural[start : start + BATCH] for start in range(0, len(natural), BATCH)]
    fired = sum(edit is not None for batch in batches for edit in editor.route(batch).edits)
    return {
        "edits": len(editor.project.ledger.edits("active")),
        "theta": threshold.theta,
        "rates": [threshold.fpr_expected, threshold.fpr_low, threshold.fpr_high],
        "fired": [fired, len(natural)],
    }


if __name__ == "__main__":
    main()
