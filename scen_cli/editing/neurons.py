"""Stage 2: the indexing neuron of one edit (the paper's section 3.3), from cached keys alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scen_cli.editing.recipe import Recipe


@dataclass(frozen=True)
class NeuronFit:
    """`neuron` (h,), float32, and the loss before each step."""

    neuron: Tensor
    losses: list[float]


def fit_neuron(key: Tensor, earlier_keys: Tensor, recipe: Recipe, seed: int) -> NeuronFit:
    """Fit edit t's neuron to its `key` (h,) against `earlier_keys` (t-1, h).

    Under the `key` recipe the neuron is the key at unit length. Otherwise it starts as
    `nn.Linear`'s default does, U(-1/sqrt(h), 1/sqrt(h)) from `seed`, and takes Adam steps on
    `neuron_loss`. Only this neuron moves. Computed in float32 on the CPU, for the same digits
    wherever the base runs.
    """
    key, earlier_keys = key.float().cpu(), earlier_keys.float().cpu()
    if not recipe.train_neuron:
        return NeuronFit(torch.nn.functional.normalize(key, dim=0), [])
    width = key.shape[0] ** -0.5
    generator = torch.Generator().manual_seed(seed)
    neuron = torch.empty_like(key).uniform_(-width, width, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([neuron], lr=recipe.neuron_lr)
    losses = []
    with torch.enable_grad():
        for _ in range(recipe.neuron_steps):
            loss = neuron_loss(torch.sigmoid(key @ neuron), torch.sigmoid(earlier_keys @ neuron), recipe)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return NeuronFit(neuron.detach(), losses)


def neuron_loss(own: Tensor, earlier: Tensor, recipe: Recipe) -> Tensor:
    """Equations 5 to 8: `own` () is a_t, `earlier` (t-1,) are the a_i. The first edit has (5) alone."""
    activate = torch.exp(-own)
    if len(earlier) == 0:
        return activate
    disactivate = torch.exp(earlier + recipe.alpha).mean()
    margin = torch.exp(earlier - own + recipe.beta).mean()
    return activate + recipe.m * (disactivate + margin)
