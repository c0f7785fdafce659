"""Does a calibrated theta keep its word? `python benchmarks/calibration.py [--seeds 20] [--edits 500]`

A guard of 1,785 prompts (three phrasings of every fact the demo base knows) is split by each seed into the parts
that make the neurons, set theta, and are fresh. The neurons of 500 edits are made by the product's own index; no
expert is trained, for no prompt is answered. Without the second look, so that it is theta alone that decides.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from scen_cli import Editor, load_base, load_suite, new_project
from scen_cli.demo.facts import right_facts
from scen_cli.neurons.calibration import expected_to_fire


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--rate", type=float, default=0.01)
    chosen = parser.parse_args()
    base = load_base("demo", device="cpu")
    records = load_suite("demo").edits[: chosen.edits]
    inside = inside_rate = 0
    for seed in range(chosen.seeds):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "guard.jsonl"
            prompts = [text for fact in right_facts() for text in fact.phrasings[:3]]
            file.write_text("\n".join(json.dumps({"prompt": text}) for text in prompts))
            changes = {"subject_filter": False, "theta": 0.05, "false_activation": chosen.rate}
            project = new_project(f"{folder}/p", "demo", guard=file, seed=seed, changes=changes, base=base)
            editor = Editor(project, base=base)
            index = editor.index
            index.load()
            keys = editor.keys([record.prompt for record in records])
            threshold = None
            for number, (record, key) in enumerate(zip(records, keys, strict=True), start=1):
                admitted = index.admit(key[None], keys[:0], [(record.prompt, record.subject)], 0, set())
                assert admitted is not None
                threshold = admitted.threshold or threshold
                index.take(number, admitted, [(record.prompt, record.subject)])
            fresh = index.strongest_on("report")[1]
        assert threshold is not None
        fired = int((fresh > threshold.theta).sum())
        k = round(threshold.expected * (threshold.prompts + 1))
        low, high = expected_to_fire(k, threshold.prompts, len(fresh))
        inside += low <= fired <= high
        inside_rate += threshold.low <= fired / len(fresh) <= threshold.high
        print(
            f"seed {seed}: theta {threshold.theta:.4f} by {threshold.prompts} prompts, rate {threshold.low:.4f} to "
            f"{threshold.high:.4f}; fresh: {fired} of {len(fresh)}, {low} to {high} expected",
            flush=True,
        )
    print(f"inside the expected number: {inside} of {chosen.seeds}; inside the rate's interval: {inside_rate}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
