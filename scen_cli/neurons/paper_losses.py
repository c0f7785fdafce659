"""Stage 2: the indexing neuron of one edit (the paper's section 3.3), from cached keys alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scen_cli.recipe import Recipe

HARD_NEGATIVES = 4096  # beyond so many, the nearest alone are learned from


@dataclass(frozen=True)
class NeuronFit:
    """`neuron` (h,), float32, and the loss before each step (none if nothing was trained)."""

    neuron: Tensor
    losses: list[float]


def train_neuron(keys: Tensor, negatives: Tensor, recipe: Recipe, seed: int = 0) -> NeuronFit:
    """Fit edit t's neuron to its key, (1, h), against `negatives` (n, h): in the paper the t-1 earlier keys.

    Edits that share an expert share the neuron: `keys` are then theirs. It starts as `nn.Linear`'s default
    does, U(-1/sqrt(h), 1/sqrt(h)) from `seed`, and takes Adam steps on
    `neuron_loss`. Only this neuron moves. Computed in float32 on the CPU, for the same digits
    wherever the base runs.
    """
    keys, negatives = keys.float().cpu(), negatives.float().cpu()
    width = keys.shape[1] ** -0.5
    generator = torch.Generator().manual_seed(seed)
    neuron = torch.empty_like(keys[0]).uniform_(-width, width, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([neuron], lr=recipe.neuron_lr)
    losses = []
    with torch.enable_grad():
        for _ in range(recipe.neuron_steps):
            loss = neuron_loss(torch.sigmoid(keys @ neuron), torch.sigmoid(negatives @ neuron), recipe)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return NeuronFit(neuron.detach(), losses)


def hard_negatives(keys: Tensor, negatives: Tensor) -> Tensor:
    """Those of `negatives` (n, h) that lie nearest to any of `keys` (m, h), by their product: all of them up to
    `HARD_NEGATIVES`, and never more, so that a step costs the same from there on."""
    if len(negatives) <= HARD_NEGATIVES:
        return negatives
    nearest = (negatives @ keys.T).amax(dim=1).topk(HARD_NEGATIVES).indices
    return negatives[nearest.sort().values]


def neuron_loss(own: Tensor, negative: Tensor, recipe: Recipe) -> Tensor:
    """Equations 5 to 8: `own` (1,) is a_t, `negative` (n,) are the a_i. The first edit has (5) alone.

    `own` (n,) of edits that share the neuron: (5) and (7) are means over them. Table 3's ablations leave
    out (6) or (7) by the recipe's `disactivate` and `margin`.
    """
    loss = torch.exp(-own).mean()
    if len(negative) and recipe.disactivate:
        loss = loss + recipe.m * torch.exp(negative + recipe.alpha).mean()
    if len(negative) and recipe.margin:
        loss = loss + recipe.m * torch.exp(negative[:, None] - own + recipe.beta).mean()
    return loss
