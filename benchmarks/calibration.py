"""Checks the false-activation rate of a calibrated theta: `python -m benchmarks.calibration [--seeds 20] [--edits 500]`

Each seed splits a guard of 1,785 prompts (three phrasings of every fact that the demo base knows) into a part that
makes the neurons, a part that sets theta, and a fresh part. The product's index makes the neurons of 500 edits; no
expert is trained, because no prompt is answered. The subject filter is off, so theta alone decides. Prints, for each
seed, how many fresh prompts fired and how many were expected.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.measuring import make_parser
from scen_cli import Editor, load_base, load_suite, new_project
from scen_cli.demo.world import right_facts
from scen_cli.neurons.admission import admit
from scen_cli.neurons.calibration import expected_to_fire


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--rate", type=float, default=0.01)
    options = parser.parse_args()
    base = load_base("demo", device="cpu")
    records = load_suite("demo").edits[: options.edits]
    inside = inside_rate = 0
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "guard.jsonl"
            prompts = [text for fact in right_facts() for text in fact.phrasings[:3]]
            file.write_text("\n".join(json.dumps({"prompt": text}) for text in prompts))
            changes = {"subject_filter": False, "theta": 0.05, "false_activation": options.rate}
            project = new_project(f"{folder}/p", "demo", guard=file, seed=seed, changes=changes, base=base)
            editor = Editor(project, base=base)
            index = editor.index
            index.load()
            keys = editor.keys([record.prompt for record in records])
            threshold = None
            for number, (record, key) in enumerate(zip(records, keys, strict=True), start=1):
                match_keys = [(record.prompt, record.subject)]
                candidate = admit(index, key[None], keys[:0], match_keys, 0, set())
                assert candidate is not None
                threshold = candidate.threshold or threshold
                index.append(number, candidate, match_keys)
            fresh = index.max_activations("report")[1]
        assert threshold is not None
        fired = int((fresh > threshold.theta).sum())
        k = round(threshold.fpr_expected * (threshold.n_guard + 1))
        low, high = expected_to_fire(k, threshold.n_guard, len(fresh))
        inside += low <= fired <= high
        inside_rate += threshold.fpr_low <= fired / len(fresh) <= threshold.fpr_high
        print(
            f"seed {seed}: theta {threshold.theta:.4f} from {threshold.n_guard} prompts, "
            f"rate {threshold.fpr_low:.4f} to {threshold.fpr_high:.4f}; "
            f"fresh: {fired} of {len(fresh)}, {low} to {high} expected",
            flush=True,
        )
    print(f"inside the expected number: {inside} of {options.seeds}; inside the rate's interval: {inside_rate}")


if __name__ == "__main__":
    main()
