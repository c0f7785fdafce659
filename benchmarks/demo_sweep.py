"""Which rates suit the demo base? `python benchmarks/demo_sweep.py [--edits 60] [--json FILE]`

Experts: for each learning rate and number of steps, the share of edits whose expert produces the
target (learned), and with that expert given (oracle routing) the share of three rephrases and of
three never-seen phrasings answered rightly, and of unedited known facts it leaves alone.
Neurons: for each rate and number of steps, the share of edits and rephrases routed to the right
edit, and of unedited known facts on which any neuron fires, at theta 0.65.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table

from scen_cli.demo.facts import editable_facts, right_facts
from scen_cli.editing.experts import Sample, fit_expert
from scen_cli.editing.neurons import fit_neuron
from scen_cli.editing.prefix import record_prefix
from scen_cli.editing.recipe import Recipe
from scen_cli.model.base import load_base
from scen_cli.model.ffn import find_layer
from scen_cli.model.patch import BASE, Patch, activations_of, choose, read_keys
from scen_cli.model.template import make_template
from scen_cli.project_setup import DEFAULT_TEMPLATE

EXPERT_GRID = [(lr, steps) for steps in (10, 20, 30) for lr in (1e-4, 1e-3, 3e-3, 1e-2)]
NEURON_GRID = [(lr, steps) for steps in (20, 100) for lr in (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)]


class Bench:
    """The demo base with the prompts of the sweep as keys and ids."""

    def __init__(self, edits: int, layer: int) -> None:
        base = load_base("demo")
        self.model = base.model
        self.edited = find_layer(self.model, layer)
        self.template = make_template(base.tokenizer, self.model, DEFAULT_TEMPLATE)
        self.facts = editable_facts()[:edits]
        self.others = right_facts()[:200]

    def key(self, prompt: str) -> torch.Tensor:
        ids = torch.tensor([self.template.prompt_ids(prompt)])
        return read_keys(self.model, self.edited.down_proj, ids, torch.ones_like(ids))[0]

    def answers(self, expert: torch.Tensor, prompts: list[str]) -> list[str]:
        """Greedy answers, one prompt at a time, with this expert for all."""
        bank = SimpleNamespace(neurons=torch.empty(0), expert=lambda _index: expert)
        patch = Patch(self.edited.projection, self.edited.down_proj, bank, theta=1.0)
        texts = []
        with patch.using(torch.tensor([0])):
            for prompt in prompts:
                ids = torch.tensor([self.template.prompt_ids(prompt)])
                out = self.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
                )
                texts.append(self.template.answer(out[0, ids.shape[1] :].tolist()))
        patch.detach()
        return texts

    def experts(self, recipe: Recipe) -> dict[str, float]:
        learned, seen, unseen, kept = [], [], [], []
        for position, fact in enumerate(self.facts):
            prompt, target = (
                self.template.prompt_ids(fact.phrasings[0]),
                self.template.target_ids(fact.phrasings[0], fact.answer),
            )
            ids = torch.tensor([prompt + target])
            prefix = record_prefix(self.model, self.edited, ids)
            fit = fit_expert(self.model, self.edited, [Sample(prefix, ids, len(target))], recipe)
            learned.append(fit.wrong_tokens == [[]])
            other = self.others[position % len(self.others)]
            texts = self.answers(fit.weight, [*fact.phrasings[1:4], *fact.never_seen, other.phrasings[0]])
            seen += [text == fact.answer for text in texts[:3]]
            unseen += [text == fact.answer for text in texts[3:-1]]
            kept.append(texts[-1] == other.answer)
        names = ("learned", "rephrases", "never seen", "unedited kept")
        return {name: sum(rows) / len(rows) for name, rows in zip(names, (learned, seen, unseen, kept), strict=True)}

    def neurons(self, recipe: Recipe) -> dict[str, float]:
        keys = torch.stack([self.key(fact.phrasings[0]) for fact in self.facts])
        rows = [fit_neuron(keys[t : t + 1], keys[:t], recipe, seed=t).neuron for t in range(len(keys))]
        merged = torch.stack(rows)

        def routed(prompts: list[str]) -> torch.Tensor:
            queries = torch.stack([self.key(prompt) for prompt in prompts])
            return choose(activations_of(queries, merged, recipe.normalise), recipe.theta)

        own = torch.arange(len(keys))
        rephrased = torch.cat([routed([fact.phrasings[i] for fact in self.facts]) == own for i in (1, 2, 3)])
        fired = routed([fact.phrasings[0] for fact in self.others]) != BASE
        own_right = routed([fact.phrasings[0] for fact in self.facts]) == own
        return {
            "edit routed": own_right.float().mean().item(),
            "rephrase routed": rephrased.float().mean().item(),
            "fired on unedited": fired.float().mean().item(),
        }


def table(console: Console, title: str, rows: list[dict[str, float | str]]) -> None:
    grid = Table(title=title)
    for name in rows[0]:
        grid.add_column(name, justify="right")
    for row in rows:
        grid.add_row(
            *(f"{value:.3f}" if name not in ("lr", "steps", "recipe") else str(value) for name, value in row.items())
        )
    console.print(grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bench = Bench(args.edits, args.layer)
    experts = [
        {"lr": lr, "steps": steps, **bench.experts(Recipe(expert_lr=lr, expert_steps=steps))}
        for lr, steps in EXPERT_GRID
    ]
    neurons = [
        {"recipe": "paper", "lr": lr, "steps": steps, **bench.neurons(Recipe(neuron_lr=lr, neuron_steps=steps))}
        for lr, steps in NEURON_GRID
    ]
    key = Recipe(name="key", train_neuron=False, normalise=True, theta=0.8)
    neurons += [
        {
            "recipe": f"key, theta {theta}",
            "lr": "",
            "steps": "",
            **bench.neurons(key.model_copy(update={"theta": theta})),
        }
        for theta in (0.6, 0.7, 0.8, 0.9)
    ]
    console = Console(width=110)
    table(console, f"Experts, layer {args.layer}, {args.edits} edits, oracle routing", experts)
    table(console, f"Neurons, layer {args.layer}, {args.edits} edits", neurons)
    if args.json:
        args.json.write_text(json.dumps({"experts": experts, "neurons": neurons}, indent=1) + "\n")


if __name__ == "__main__":
    main()
