"""Recipe `joint`: the paper's losses, with every other edit and the guard as negatives.

The paper's neuron t learns of edits before it alone. Here it learns of all in force and of prompts that must
stay the base's own; and a neuron that is stronger on a new edit's key than that edit's own is
fitted again, the new key among its negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scen_cli.editing.neurons import NeuronFit, train_neuron
from scen_cli.editing.recipe import Recipe

ROUNDS = 3  # fits of a neuron that goes on stealing


def fit_joint(keys: Tensor, others: Tensor, guard: Tensor, recipe: Recipe, seed: int) -> NeuronFit:
    """Fit a neuron to its keys (n, h) against all `others` (t, h) and the `guard` (g, h)."""
    return train_neuron(keys, torch.cat([others, guard]), recipe, seed)


def refit_thieves(
    neurons: Tensor, keys: Tensor, newest: Tensor, key: Tensor, guard: Tensor, recipe: Recipe
) -> dict[int, Tensor]:
    """Neurons (t, h), each with its row of `keys` (t, h), that are as strong on the new edit's `key` (h,) as
    its own neuron `newest` is: fitted again from where they stand. Returns {row: neuron (h,)}."""
    own = newest @ key
    refitted: dict[int, Tensor] = {}
    for row in ((neurons @ key) >= own).nonzero().flatten().tolist():
        others = torch.cat([keys[:row], keys[row + 1 :], key[None], guard])
        neuron = neurons[row]
        for _ in range(ROUNDS):
            neuron = train_neuron(keys[row : row + 1], others, recipe, start=neuron).neuron
            if neuron @ key < own:
                break
        refitted[row] = neuron
    return refitted
