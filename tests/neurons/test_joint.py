"""Recipe `joint`: other edits and the guard are negatives, and colliding neurons are trained again."""

from __future__ import annotations

import torch

from scen_cli.neurons.neuron_fit import refit_colliding, train_neuron
from scen_cli.recipe import Recipe

RECIPE = Recipe(neuron_lr=0.05, neuron_steps=100)


def test_joint_neuron_is_weaker_on_the_guard_than_the_papers():
    torch.manual_seed(0)
    common = 2 * torch.randn(32)
    keys, guard = torch.randn(3, 32) + common, torch.randn(40, 32) + common
    paper = train_neuron(keys[2:], keys[:2], RECIPE, seed=1).neuron
    joint = train_neuron(keys[2:], torch.cat([keys[:2], guard]), RECIPE, seed=1).neuron
    assert torch.sigmoid(keys[2] @ joint) > 0.65
    assert torch.sigmoid(guard @ joint).mean() < torch.sigmoid(guard @ paper).mean() / 2


def test_refit_colliding_trains_only_neurons_that_are_as_strong_on_the_new_key():
    torch.manual_seed(0)
    keys = torch.randn(3, 32)
    new = keys[0] + 0.7 * torch.randn(32)  # near the first edit
    guard = torch.randn(10, 32)
    neurons = torch.stack([train_neuron(keys[:1], keys[:0], RECIPE).neuron, *(torch.zeros(2, 32))])
    new_neuron = train_neuron(new[None], torch.cat([keys, guard]), RECIPE, seed=1).neuron
    assert neurons[0] @ new > new_neuron @ new  # a collision
    refitted = refit_colliding(neurons, keys, new_neuron, new, guard, RECIPE)
    assert list(refitted) == [0]
    assert refitted[0] @ new < new_neuron @ new
    assert refitted[0] @ keys[0] > refitted[0] @ new  # still strongest on its own key
