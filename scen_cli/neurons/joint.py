"""Recipe `joint`: the paper's losses, with every other edit and the guard as negatives.

The paper's neuron t learns of edits before it alone. Here it learns of all active and of prompts that must
stay the base's own; and a neuron that is stronger on a new edit's key than that edit's own is
fitted again, the new key among its negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scen_cli.neurons.paper_losses import NeuronFit, train_neuron
from scen_cli.recipe import Recipe


def fit_joint(keys: Tensor, others: Tensor, guard: Tensor, recipe: Recipe, seed: int) -> NeuronFit:
    """Fit a neuron to its keys (n, h) against all `others` (t, h) and the `guard` (g, h)."""
    return train_neuron(keys, torch.cat([others, guard]), recipe, seed)


def refit_colliding(
    neurons: Tensor, keys: Tensor, newest: Tensor, key: Tensor, guard: Tensor, recipe: Recipe
) -> dict[int, Tensor]:
    """Neurons (t, h), each with its row of `keys` (t, h), that are as strong on the new edit's `key` (h,) as
    its own neuron `newest` is: fitted again. Returns {row: neuron (h,)}. (One may still be as strong: then the two
    cannot both stand, and the index refuses the new one.)"""
    own = newest @ key
    refitted: dict[int, Tensor] = {}
    for row in ((neurons @ key) >= own).nonzero().flatten().tolist():
        others = torch.cat([keys[:row], keys[row + 1 :], guard])
        others = torch.cat([others, key.expand(max(len(others), 1), -1)])  # the key it takes weighs as much as all
        # From a new start: where sigmoid(w.k) is near 1 already, nothing would move.
        refitted[row] = train_neuron(keys[row : row + 1], others, recipe, seed=row).neuron
    return refitted
