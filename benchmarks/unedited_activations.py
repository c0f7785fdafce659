"""Why do neurons fire on what was never edited? `python benchmarks/unedited_activations.py PROJECT...`

For each project on the demo base: mean activation of a neuron on its own edit, mean of all neurons on
unedited prompts, the share of those on which one fires, and how often the strongest there is one of the
ten oldest neurons.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.console import Console

from scen_cli import PatchedModel, Project, load_base, load_suite
from scen_cli.cli.output import table

OLDEST = 10
BATCH = 64


def main() -> None:
    base, prompts = load_base("demo"), load_suite("demo").locality
    rows = []
    for folder in sys.argv[1:]:
        model = PatchedModel(Project(folder), base=base)
        batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
        activations = torch.cat([model.route(batch).activations for batch in batches])
        strongest, neuron = activations.max(dim=1)
        own = [edit.activation or 0.0 for edit in model.project.ledger.edits("active")]
        fired = (strongest > model.patch().theta).float().mean()
        oldest = (neuron < OLDEST).float().mean()
        row = [sum(own) / len(own), activations.mean(), fired, oldest]
        rows.append([Path(folder).name, *(f"{float(value):.3f}" for value in row)])
        model.detach()
    columns = ("project", "own#", "on unedited#", "fired on unedited#", f"strongest of the first {OLDEST}#")
    Console().print(table(columns, rows))


if __name__ == "__main__":
    main()
