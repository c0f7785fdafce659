"""Counts what a batch changes in bfloat16: `python -m benchmarks.batch_difference PROJECT SUITE NATURAL`

PROJECT holds edits of records of SUITE. Their prompts and rephrases, and as many NATURAL prompts, are routed and
answered one at a time, and again in batches of 16. In float32 nothing may change (`tests/model/test_batches.py`);
bfloat16 rounds each result to 8 bits, and a batch sums in another order.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.measuring import make_parser
from benchmarks.page import report
from scen_cli import Editor, Project, load_suite
from scen_cli.data.suites import read_prompts

BATCH = 16


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("suite", type=Path)
    parser.add_argument("natural", type=Path)
    options = parser.parse_args()
    editor = Editor(Project(options.project))
    edited = {edit.prompt for edit in editor.project.ledger.edits("active")}
    records = [record for record in load_suite(str(options.suite)).edits if record.prompt in edited]
    prompts = [prompt for record in records for prompt in (record.prompt, *record.rephrases)]
    natural = read_prompts(options.natural)[: len(prompts)]
    found = []
    for kind, asked in (("prompts and rephrases of edits", prompts), ("natural questions", natural)):
        alone = _answers(editor, asked, 1)
        batched = _answers(editor, asked, BATCH)
        pairs = list(zip(alone, batched, strict=True))
        routes = sum(one[0] != other[0] for one, other in pairs)
        texts = sum(one[1] != other[1] for one, other in pairs)
        dtype = editor.project.settings["dtype"]
        found.append({"kind": kind, "dtype": dtype, "prompts": len(asked), "routes": routes, "answers": texts})
        print(found[-1], flush=True)
    report("batch_difference", {"found": found}, options.json)


def _answers(editor: Editor, prompts: list[str], batch: int) -> list[tuple[int | None, str]]:
    """For each prompt the edit that was activated, and the answer."""
    pairs = []
    for start in range(0, len(prompts), batch):
        answers = editor.answer(prompts[start : start + batch])
        pairs += list(zip(answers.edits, answers.texts, strict=True))
    return pairs


if __name__ == "__main__":
    main()
