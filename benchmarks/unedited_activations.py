"""Measures the activation of neurons on unedited prompts: `python -m benchmarks.unedited_activations PROJECT...`

For each project on the demo base, prints: the mean activation of a neuron on its own edit, the mean of all neurons on
unedited prompts, the share of unedited prompts on which one fires, and the share on which the strongest neuron is one
of the ten oldest.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.measuring import make_parser, markdown
from scen_cli import PatchedModel, Project, load_base, load_suite

OLDEST = 10
BATCH = 64


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("projects", nargs="+", type=Path)
    base, prompts = load_base("demo"), load_suite("demo").locality
    rows = []
    for folder in parser.parse_args().projects:
        model = PatchedModel(Project(folder), base=base)
        batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
        activations = torch.cat([model.route(batch).activations for batch in batches])
        strongest, neuron = activations.max(dim=1)
        own = [edit.activation or 0.0 for edit in model.project.ledger.edits("active")]
        fired = (strongest > model.patch().theta).float().mean()
        oldest = (neuron < OLDEST).float().mean()
        values = [sum(own) / len(own), activations.mean(), fired, oldest]
        rows.append([folder.name, *(f"{float(value):.3f}" for value in values)])
        model.detach()
    head = ["project", "own", "on unedited", "fired on unedited", f"strongest is one of the first {OLDEST}"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
