"""Compares batched answers with answers one at a time: `python -m benchmarks.batched_evaluation [--json FILE]`

Routes and answers 1,000 prompts of the demo suite in a project of 100 edits, in batches as `scen eval` does, and one at
a time. Both take turns, and their answers must be equal. Prints prompts per second and the ratio.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.measuring import demo_editor, make_parser, write
from scen_cli import load_suite

EDITS, ROUNDS = 100, 3


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=1000)
    options = parser.parse_args()
    suite = load_suite("demo")
    edits = suite.edits[:EDITS]
    prompts = [text for edit in edits for text in (edit.prompt, *edit.rephrases[:4])] + suite.locality
    prompts = prompts[: options.prompts]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        editor = demo_editor(Path(folder) / "project", edits, recipe="key")
        editor.answer(prompts[:8])  # warm up: load the experts
        for _ in range(ROUNDS):
            started = time.perf_counter()
            together = editor.answer(prompts)
            between = time.perf_counter()
            alone = [editor.answer([prompt]) for prompt in prompts]
            ended = time.perf_counter()
            assert together.texts == [answer.texts[0] for answer in alone]
            assert together.edits == [answer.edits[0] for answer in alone]
            rounds.append((len(prompts) / (between - started), len(prompts) / (ended - between)))
    ratios = sorted(batched / single for batched, single in rounds)
    for batched, single in rounds:
        print(f"batched {batched:7.1f} prompts/s   alone {single:6.1f} prompts/s   {batched / single:.1f} times")
    print(f"{len(prompts)} prompts, {EDITS} edits, same answers; median ratio {ratios[len(ratios) // 2]:.1f}")
    write(options.json, {"prompts": len(prompts), "rounds": rounds, "ratios": ratios})


if __name__ == "__main__":
    main()
