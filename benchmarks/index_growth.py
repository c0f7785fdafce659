"""Times one more neuron in a large index: `python -m benchmarks.index_growth [--at 1000 10000]`

The product's index admits the keys of further demo facts one by one (fit, bias, check that every edit calls itself,
calibration). Prints the mean time of 50 edits at each size, and the time to train the experts of the same edits.
"""

from __future__ import annotations

import tempfile
import time

from benchmarks.measuring import make_parser
from scen_cli import Editor, EditRecord, load_base, new_project
from scen_cli.demo.world import further_facts
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.keys import KeyConfig
from scen_cli.neurons.admission import admit

TIMED = 50


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--at", type=int, nargs="+", default=[1000, 10000])
    options = parser.parse_args()
    base = load_base("demo", device="cpu")
    facts = further_facts(max(options.at) + TIMED)
    with tempfile.TemporaryDirectory() as folder:
        editor = Editor(new_project(f"{folder}/p", "demo", base=base), base=base)
        index = editor.index
        index.load()
        ids = [editor.template.prompt_ids(fact.phrasings[0]) for fact in facts]
        keys, _rows = read_segment_keys(base, editor.edited, ids, KeyConfig())
        seconds_at: dict[int, float] = {}
        for number, (fact, key) in enumerate(zip(facts, keys, strict=True)):
            match_keys = [(fact.phrasings[0], fact.subject)]
            started = time.perf_counter()
            candidate = admit(index, key[None], keys[:0], match_keys, 0, set())
            assert candidate is not None
            index.append(number + 1, candidate, match_keys)
            for size in options.at:
                if size <= number < size + TIMED:
                    seconds_at[size] = seconds_at.get(size, 0.0) + (time.perf_counter() - started) / TIMED
        started = time.perf_counter()
        for fact in facts[:TIMED]:
            record = EditRecord(prompt=fact.phrasings[0], target=fact.answer)
            editor.fit([[record]])
        expert = (time.perf_counter() - started) / TIMED
    for size, seconds in seconds_at.items():
        print(f"at {size} edits: {1000 * seconds:.1f} ms per neuron, {expert / seconds:.1f} times less than its expert")
    first, last = min(seconds_at), max(seconds_at)
    growth = seconds_at[last] / seconds_at[first]
    print(f"{first} to {last} edits: time per neuron times {growth:.1f}; time per expert {1000 * expert:.0f} ms")


if __name__ == "__main__":
    main()
