"""Recipe `joint`: the paper's losses, with all other active edits and the guard prompts as negatives.

In the paper, neuron t has only earlier edits as negatives. Here the negatives are all active edits and prompts that
must keep the base's answer. If an older neuron is stronger on the new edit's key than the new neuron, the older one is
trained again with the new key among its negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scen_cli.neurons.paper_losses import NeuronFit, train_neuron
from scen_cli.recipe import Recipe


def fit_joint(keys: Tensor, others: Tensor, guard: Tensor, recipe: Recipe, seed: int) -> NeuronFit:
    """Train a neuron on its keys (k, h) against the keys of all other edits `others` (t, h) and of `guard` (g, h)."""
    return train_neuron(keys, torch.cat([others, guard]), recipe, seed)


def refit_colliding(
    neurons: Tensor, keys: Tensor, new_neuron: Tensor, new_key: Tensor, guard: Tensor, recipe: Recipe
) -> dict[int, Tensor]:
    """Train again each neuron that is at least as strong on the new edit's key as the new neuron.

    A refitted neuron may still be as strong. The index then rejects the new edit.

    Args:
        neurons: The active neurons, (t, h).
        keys: One key of each neuron's own edit, (t, h).
        new_neuron: The new edit's neuron, (h,).
        new_key: The new edit's key, (h,).
        guard: Keys of guard prompts, (g, h).
        recipe: The project's recipe.

    Returns:
        {row of `neurons`: refitted neuron (h,)}.
    """
    refitted: dict[int, Tensor] = {}
    for row in ((neurons @ new_key) >= new_neuron @ new_key).nonzero().flatten().tolist():
        negatives = torch.cat([keys[:row], keys[row + 1 :], guard])
        # Repeat the new key: together its copies weigh as much as all other negatives.
        negatives = torch.cat([negatives, new_key.expand(max(len(negatives), 1), -1)])
        # Start from new weights: where sigmoid(w . k) is near 1, the gradient is nearly 0.
        refitted[row] = train_neuron(keys[row : row + 1], negatives, recipe, seed=row).neuron
    return refitted
