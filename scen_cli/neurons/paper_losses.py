"""The loss of the indexing neuron (equations 5 to 8 of the paper, section 3.3), and the training of the neuron."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scen_cli.recipe import Recipe

HARD_NEGATIVES = 4096  # training uses at most this many negatives: the nearest ones


@dataclass(frozen=True)
class NeuronFit:
    """A fitted neuron (h,), float32, and the loss before each Adam step (empty if nothing was trained)."""

    neuron: Tensor
    losses: list[float]


def neuron_loss(own: Tensor, negatives: Tensor, recipe: Recipe) -> Tensor:
    """The loss of edit t's indexing neuron: equations 5 to 8 of the paper.

        l_activate    = exp(-a_t)                            (5)
        l_disactivate = mean over i of exp(a_i + alpha)      (6)
        l_margin      = mean over i of exp(a_i - a_t + beta) (7)
        loss          = l_activate + m (l_disactivate + l_margin)  (8)

    Without negatives (the first edit) the loss is (5) alone. `recipe.disactivate` and `recipe.margin` switch off
    (6) and (7): the ablations of Table 3.

    Args:
        own: Activations of the neuron on its own keys, (k,). The paper has k = 1: this is a_t. Edits that share an
            expert (Table 4) share the neuron; (5) and (7) are then means over their keys.
        negatives: Activations of the same neuron on the other keys, (n,): the a_i.
        recipe: Supplies alpha, beta and m.

    Returns:
        The loss, a scalar.
    """
    loss = torch.exp(-own).mean()  # (5)
    if len(negatives) and recipe.disactivate:
        loss = loss + recipe.m * torch.exp(negatives + recipe.alpha).mean()  # (6)
    if len(negatives) and recipe.margin:
        loss = loss + recipe.m * torch.exp(negatives[:, None] - own + recipe.beta).mean()  # (7)
    return loss


def train_neuron(keys: Tensor, negatives: Tensor, recipe: Recipe, seed: int = 0) -> NeuronFit:
    """Train one indexing neuron with Adam on `neuron_loss`. All other neurons stay as they are.

    Training runs in float32 on the CPU, so the result does not depend on the base's device.

    Args:
        keys: The edit's key, (1, h), or the keys of all edits that share the neuron, (k, h).
        negatives: Keys on which the neuron must stay weak, (n, h). In the paper: the t-1 earlier keys.
        recipe: Supplies `neuron_lr`, `neuron_steps` and the settings of the loss.
        seed: Seed of the initial weights, U(-1/sqrt(h), 1/sqrt(h)): the default of `nn.Linear`.
    """
    keys, negatives = keys.float().cpu(), negatives.float().cpu()
    bound = keys.shape[1] ** -0.5
    generator = torch.Generator().manual_seed(seed)
    neuron = torch.empty_like(keys[0]).uniform_(-bound, bound, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([neuron], lr=recipe.neuron_lr)
    losses = []
    with torch.enable_grad():
        for _ in range(recipe.neuron_steps):
            # Equation 10: an activation is sigmoid(w . k).
            loss = neuron_loss(torch.sigmoid(keys @ neuron), torch.sigmoid(negatives @ neuron), recipe)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return NeuronFit(neuron.detach(), losses)


def hard_negatives(keys: Tensor, negatives: Tensor) -> Tensor:
    """The `HARD_NEGATIVES` rows of `negatives` (n, h) with the largest dot product with any of `keys` (k, h), in their
    order; all rows if there are no more. This bounds the cost of a training step."""
    if len(negatives) <= HARD_NEGATIVES:
        return negatives
    nearest = (negatives @ keys.T).amax(dim=1).topk(HARD_NEGATIVES).indices
    return negatives[nearest.sort().values]
