"""How much faster are prompts answered in batches? `python benchmarks/batched_evaluation.py [--json FILE]`

1,000 prompts of the demo suite, on a project of 100 edits: routed and answered as `scen eval` does, and
one at a time. Both in turns, and the answers must be the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from scen_cli import Editor, load_suite, new_project

EDITS, PROMPTS, ROUNDS = 100, 1000, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    chosen = parser.parse_args()
    suite = load_suite("demo")
    edits = suite.edits[:EDITS]
    prompts = [text for edit in edits for text in (edit.prompt, *edit.rephrases[:4])] + suite.locality
    prompts = prompts[: chosen.prompts]
    with tempfile.TemporaryDirectory() as folder:
        editor = Editor(new_project(folder, "demo", recipe="key"))
        with editor.project.writing():
            for record in edits:
                editor.edit(record)
        editor.answer(prompts[:8])  # experts are read and the machine is warm
        rounds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            batched = editor.answer(prompts)
            between = time.perf_counter()
            alone = [editor.answer([prompt]) for prompt in prompts]
            ended = time.perf_counter()
            assert batched.texts == [one.texts[0] for one in alone]
            assert batched.edits == [one.edits[0] for one in alone]
            rounds.append((len(prompts) / (between - started), len(prompts) / (ended - between)))
    ratios = sorted(fast / slow for fast, slow in rounds)
    for fast, slow in rounds:
        print(f"batched {fast:7.1f} prompts/s   alone {slow:6.1f} prompts/s   {fast / slow:.1f} times")
    print(f"{len(prompts)} prompts, {EDITS} edits, same answers; median ratio {ratios[len(ratios) // 2]:.1f}")
    if chosen.json:
        chosen.json.write_text(json.dumps({"prompts": len(prompts), "rounds": rounds, "ratios": ratios}))


if __name__ == "__main__":
    main()
