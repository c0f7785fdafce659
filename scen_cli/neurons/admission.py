"""Admit a new edit to the index: fit its neuron, recalibrate theta, and reject it if it collides with an active edit.

Recipes with a guard promise that every active edit's own prompt routes to that edit. `admit` checks it in both
directions: no active neuron is as strong on the new key as the new neuron, and the new neuron is not as strong as their
own on the keys of active edits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scen_cli.errors import UsageError
from scen_cli.neurons.guard_split import MatchKey
from scen_cli.neurons.index import MARGIN, ROUNDING, Index, NeuronCandidate
from scen_cli.neurons.neuron_fit import NeuronFit, bias_of, hard_negatives, neuron_of, refit_colliding, train_neuron


def admit(
    index: Index,
    keys: Tensor,
    rephrase_keys: Tensor,
    match_keys: Sequence[MatchKey],
    seed: int,
    superseded: set[int],
) -> NeuronCandidate | None:
    """Fit the neuron of a new expert. The index itself does not change.

    Args:
        index: The loaded index.
        keys: Keys of the edits that share the expert, (n, h); n is 1 as a rule.
        rephrase_keys: Keys of their training rephrases, (m, h).
        match_keys: Prompt and subject of each edit.
        seed: Seed of the neuron's initial weights.
        superseded: Experts that become inactive with this commit: their neurons and keys do not count.

    Returns:
        The candidate; None if training diverged.

    Raises:
        UsageError: The recipe has a guard, and the new edit collides with an active one.
    """
    remaining = torch.tensor([expert not in superseded for expert in index.experts], dtype=torch.bool)
    other_keys, other_own, max_on_guard = index.keys.all(), index.own_activations.all()[:, 0], index.max_on_guard
    if superseded:
        kept = torch.tensor([expert not in superseded for expert in index.expert_of_key], dtype=torch.bool)
        other_keys, other_own = other_keys[kept], other_own[kept]
        max_on_guard = index.compute_max_on_guard(remaining)

    fit = _fit_neuron(index, keys, rephrase_keys, other_keys, seed)
    if not fit.neuron.isfinite().all():
        return None
    neuron = index.normalize_neuron(fit.neuron)

    # Where the new neuron is too strong on the keys of active edits, `closed-form` weakens it by a bias, and `joint`
    # trains the other neurons again where they are too strong on the new key.
    bias = fit_bias(index, neuron, other_keys, other_own) if index.recipe.index == "closed-form" else 0.0
    refitted = _refit(index, keys[0], neuron, remaining) if index.recipe.index == "joint" else {}

    prepared = index.prepare_keys(keys)
    on_keys = index.exact_activation(prepared, neuron) - bias
    split = index.calibration_split
    on_guard = split.max_per_prompt(index.exact_activation(split.keys, neuron), match_keys) - bias

    # A calibrated theta must stay below the activation of every edit's own prompt, the new one's included.
    highest_theta = 1.0
    if index.recipe.needs_guard:
        if index.recipe.index == "joint":
            # Refitted neurons change the activations on all keys: compute and check them all.
            other_own = _check_all_keys(index, neuron, prepared, superseded, refitted)
        else:
            # The bias protects the keys of active edits, so only the new keys need a check.
            _check_new_keys(index, prepared, on_keys, remaining)
        highest_theta = min(float(on_keys.min()), float(other_own.min()) if len(other_own) else 1.0) - MARGIN
    threshold = index.threshold_for(torch.maximum(max_on_guard, on_guard), highest_theta)
    return NeuronCandidate(fit, bias, keys, on_keys, on_guard, refitted, threshold)


def fit_bias(index: Index, neuron: Tensor, other_keys: Tensor, other_own: Tensor) -> float:
    """The bias of a closed-form neuron (h,).

    It follows from the guard (`bias_of`), and is larger where the neuron would come within `MARGIN` of the activation
    that another edit's key gives its own neuron.

    Args:
        index: The loaded index.
        neuron: The normalised neuron, (h,).
        other_keys: Prepared keys of the other edits, (n, h).
        other_own: The activation of each of these keys' own neuron, (n,).
    """
    bias = bias_of(index.exact_activation(index.fit_split.keys, neuron))
    if not len(other_keys):
        return bias
    excess = index.unbiased_activations(other_keys, neuron[None])[:, 0] - bias - other_own
    # Float32 finds the keys that may have the largest excess; the bias needs its exact value.
    largest = excess >= excess.max() - ROUNDING
    exact = index.exact_activation(other_keys[largest], neuron) - bias - other_own[largest]
    return bias + max(0.0, float(exact.max()) + MARGIN)


def _fit_neuron(index: Index, keys: Tensor, rephrase_keys: Tensor, other_keys: Tensor, seed: int) -> NeuronFit:
    if not index.recipe.trains_neurons:
        return NeuronFit(neuron_of(keys, rephrase_keys, index.whitening), [])
    if index.recipe.index == "paper":
        return train_neuron(keys, hard_negatives(keys, other_keys), index.recipe, seed)
    positives = torch.cat([keys, rephrase_keys])
    negatives = torch.cat([hard_negatives(positives, other_keys), index.fit_split.keys])
    return train_neuron(positives, negatives, index.recipe, seed)


def _refit(index: Index, new_key: Tensor, new_neuron: Tensor, remaining: Tensor) -> dict[int, Tensor]:
    """Neurons that are too strong on the new key, trained again: {expert: neuron (h,)}."""
    experts = [index.experts[row] for row in remaining.nonzero().flatten().tolist()]
    first_keys = torch.stack([index.prepared_keys_of(expert)[0] for expert in experts] or [torch.empty(0, index.width)])
    neurons = index.neurons.all()[remaining]
    refitted = refit_colliding(neurons, first_keys, new_neuron, new_key, index.fit_split.keys, index.recipe)
    return {experts[row]: neuron for row, neuron in refitted.items()}


def _check_new_keys(index: Index, keys: Tensor, on_keys: Tensor, remaining: Tensor) -> None:
    """Reject the edit if an active neuron is as strong on one of its keys (n, h) as its own neuron, `on_keys` (n,)."""
    if not bool(remaining.any()):
        return
    others = index.unbiased_activations(keys, index.neurons.all()) - torch.tensor(index.biases)
    largest, rows = others.masked_fill(~remaining, -torch.inf).max(dim=1)
    for key in (largest >= on_keys).nonzero().flatten().tolist():
        _reject(index, index.experts[int(rows[key])])


def _check_all_keys(
    index: Index, neuron: Tensor, keys: Tensor, superseded: set[int], refitted: dict[int, Tensor]
) -> Tensor:
    """Reject the edit if any key, old or new, is at least as strong on another neuron as on its own.

    Returns the activation of each key's own neuron after this edit, old keys first.
    """
    rows = [row for row, expert in enumerate(index.experts) if expert not in superseded]
    experts = [index.experts[row] for row in rows]
    neurons = [refitted.get(expert, index.neurons.all()[row]) for row, expert in zip(rows, experts, strict=True)]
    column_of = {expert: column for column, expert in enumerate(experts)}
    old = [
        (key, column_of[expert])
        for key, expert in zip(index.keys.all(), index.expert_of_key, strict=True)
        if expert in column_of
    ]
    all_keys = torch.stack([*(key for key, _column in old), *keys])
    activations = index.exact_activations(all_keys, torch.stack([*neurons, neuron]))
    new_column = len(neurons)
    own_column = torch.tensor([*(column for _key, column in old), *[new_column] * len(keys)])
    own = activations.gather(1, own_column[:, None])[:, 0]
    largest_other = activations.scatter(1, own_column[:, None], -torch.inf).max(dim=1).values
    for key in (largest_other >= own).nonzero().flatten().tolist():
        column = int(own_column[key])
        _reject(index, experts[column if column < new_column else int(activations[key, :-1].argmax())])
    return own


def _reject(index: Index, expert: int) -> None:
    other = index.project.find(expert)
    raise UsageError(
        f"the new edit collides with edit {other.id} ({other.prompt!r} -> {other.target!r}): the base cannot "
        "distinguish their prompts",
        hint=f"`scen revert {other.id}` removes the older edit",
    )
