"""What one more edit costs the index: `python benchmarks/index_growth.py [--at 1000 10000]`

Keys of further facts of the demo's world are admitted one by one by the product's own index (fit, bias, check that
every edit calls itself, calibration), and timed over 50 edits at each size; beside it the time that the same
edits' experts take on this machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import torch

from scen_cli import Editor, EditRecord, load_base, new_project
from scen_cli.demo.world import further_facts
from scen_cli.model.keys import KeyConfig
from scen_cli.neurons.build_guard import read_segment_keys

TIMED = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", type=int, nargs="+", default=[1000, 10000])
    chosen = parser.parse_args()
    base = load_base("demo", device="cpu")
    facts = further_facts(max(chosen.at) + TIMED)
    with tempfile.TemporaryDirectory() as folder:
        editor = Editor(new_project(f"{folder}/p", "demo", base=base), base=base)
        index = editor.index
        index.load()
        ids = [editor.template.prompt_ids(fact.phrasings[0]) for fact in facts]
        keys, _rows = read_segment_keys(base, editor.edited, ids, KeyConfig())
        took: dict[int, float] = {}
        for number, (fact, key) in enumerate(zip(facts, keys, strict=True)):
            about = [(fact.phrasings[0], fact.subject)]
            started = time.perf_counter()
            admitted = index.admit(key[None], keys[:0], about, 0, set())
            assert admitted is not None
            index.take(number + 1, admitted, about)
            for size in chosen.at:
                if size <= number < size + TIMED:
                    took[size] = took.get(size, 0.0) + (time.perf_counter() - started) / TIMED
        started = time.perf_counter()
        for fact in facts[:TIMED]:
            record = EditRecord(prompt=fact.phrasings[0], target=fact.answer)
            editor.fit([[record]])
        expert = (time.perf_counter() - started) / TIMED
    for size, seconds in took.items():
        print(
            f"at {size} edits: {1000 * seconds:.1f} ms for a neuron, {expert / seconds:.1f} times less than its expert"
        )
    first, last = min(took), max(took)
    print(f"{first} to {last} edits: neuron work times {took[last] / took[first]:.1f}; expert {1000 * expert:.0f} ms")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
