"""Which neurons change when edits are made, reverted or reactivated.

`admit` fits the neuron of a new edit, recalibrates theta, and rejects the edit if it collides with an active one.
Recipes with a guard promise that every active edit's own prompt routes to that edit. `admit` checks it in both
directions: no active neuron is as strong on the new key as the new neuron, and the new neuron is not as strong as their
own on the keys of active edits.

`recompute_biases`: the bias of a closed-form neuron depends on the keys that were active when its edit was made. After
a revert, each bias must be what it would be if the reverted edits had never been made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from scen_cli.errors import DamageFound, UsageError
from scen_cli.neurons.guard_split import MatchKey, match_key
from scen_cli.neurons.index import MARGIN, ROUNDING, Index, NeuronCandidate, same_subject
from scen_cli.neurons.neuron_fit import NeuronFit, bias_of, hard_negatives, neuron_of, refit_colliding, train_neuron
from scen_cli.project.ledger_rows import Edit


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
    subject = match_keys[0][1] if len(match_keys) == 1 else None
    competing = remaining & index.competing(subject)

    # Where the new neuron is too strong on the keys of active edits, `closed-form` weakens it by a bias, and `joint`
    # trains the other neurons again where they are too strong on the new key.
    bias = 0.0
    if index.recipe.index == "closed-form":
        rivals = index.keys_of_experts(competing)
        bias = fit_bias(index, neuron, index.keys.all()[rivals], index.own_activations.all()[rivals, 0], subject)
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
            other_own = _check_all_keys(index, neuron, prepared, remaining, refitted)
        else:
            # The bias protects the keys of active edits, so only the new keys need a check.
            _check_new_keys(index, prepared, on_keys, competing)
        highest_theta = min(float(on_keys.min()), float(other_own.min()) if len(other_own) else 1.0) - MARGIN
    threshold = index.threshold_for(torch.maximum(max_on_guard, on_guard), highest_theta)
    return NeuronCandidate(fit, bias, keys, on_keys, on_guard, refitted, threshold)


def fit_bias(index: Index, neuron: Tensor, other_keys: Tensor, other_own: Tensor, subject: str | None) -> float:
    """The bias of a closed-form neuron (h,).

    It follows from the guard (`bias_of`), and is larger where the neuron would come within `MARGIN` of the activation
    that another edit's key gives its own neuron.

    Args:
        index: The loaded index.
        neuron: The normalised neuron, (h,).
        other_keys: Prepared keys of the other edits, (n, h).
        other_own: The activation of each of these keys' own neuron, (n,).
        subject: The edit's subject. Where the recipe masks it, the guard says nothing of its neuron.
    """
    masked = index.recipe.masks_subjects and subject is not None
    bias = 0.0 if masked else bias_of(index.exact_activation(index.fit_split.keys, neuron))
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
        reject(index, index.experts[int(rows[key])])


def _check_all_keys(
    index: Index, neuron: Tensor, keys: Tensor, remaining: Tensor, refitted: dict[int, Tensor]
) -> Tensor:
    """Reject the edit if any key, old or new, is at least as strong on another neuron as on its own.

    Returns the activation of each key's own neuron after this edit, old keys first.
    """
    column_of = {expert: column for column, expert in enumerate(index.experts)}
    neurons = torch.cat([index.neurons.all(), neuron[None]])
    for expert, new_neuron in refitted.items():
        neurons[column_of[expert]] = new_neuron
    own_column = torch.tensor([*(column_of[expert] for expert in index.expert_of_key), *[len(column_of)] * len(keys)])
    activations = index.exact_activations(torch.cat([index.keys.all(), keys]), neurons)
    # Leave out the neurons and keys of superseded experts.
    active = torch.cat([remaining, torch.tensor([True])])
    activations = activations.masked_fill(~active, -torch.inf)[active[own_column]]
    own_column = own_column[active[own_column], None]
    own = activations.gather(1, own_column)[:, 0]
    largest_other = activations.scatter(1, own_column, -torch.inf).max(dim=1).values
    for key in (largest_other >= own).nonzero().flatten().tolist():
        column = int(own_column[key])
        reject(index, index.experts[column if column < len(column_of) else int(activations[key, :-1].argmax())])
    return own


def reject(index: Index, expert: int) -> NoReturn:
    """Raise `UsageError`: a new edit collides with this active expert."""
    other = index.project.find(expert)
    raise UsageError(
        f"the new edit collides with edit {other.id} ({other.prompt!r} -> {other.target!r}): the base cannot "
        "distinguish their prompts",
        hint=f"`scen revert {other.id}` removes the older edit",
    )


@dataclass(frozen=True)
class _ExpertKeys:
    """Prepared keys (n, h) of an expert, and the activations (n,) of its own neuron on them, bias subtracted."""

    keys: Tensor
    own: Tensor


def recompute_biases(
    index: Index, reverted: Sequence[Edit], reactivated: Sequence[Edit]
) -> dict[int, tuple[float, float]]:
    """Find the biases that change.

    Superseded experts are included, because a later revert may reactivate them. To save time, an expert is skipped if
    none of the changed keys comes near to setting its bias.

    Args:
        index: The loaded index.
        reverted: Edits that are no longer active. If a file of theirs cannot be read, no expert is skipped.
        reactivated: Edits that are active again.

    Returns:
        {expert: (bias, smallest activation on its own keys)} for each expert whose bias changes.

    Raises:
        DamageFound: The file of an edit that stays is damaged.
    """
    ledger = index.project.ledger
    experts = {edit.id: edit for edit in ledger.edits("active", "superseded") if edit.expert == edit.id}
    changed = [(edit, _load_keys(index, edit, edit.bias)) for edit in reactivated if edit.expert == edit.id]
    check_all = False
    for edit in reverted:
        try:
            changed += [(edit, _load_keys(index, edit, edit.bias))] if edit.expert == edit.id else []
        except DamageFound:
            check_all = True
    biases: dict[int, tuple[float, float]] = {}
    first = min(edit.id for edit in (*reverted, *reactivated))
    for expert, edit in experts.items():
        if expert <= first:  # made before any of the changed edits
            continue
        rivals = [keys for other, keys in changed if _compete(index, other, edit)]
        if not check_all and not any(_excess(index, edit, keys) > -ROUNDING for keys in rivals):
            continue
        others = [
            _load_keys(index, other, biases[other.id][0] if other.id in biases else other.bias)
            for other in experts.values()
            if other.id < expert and _was_active(other, expert) and _compete(index, other, edit)
        ]
        other_keys = torch.cat([torch.empty(0, index.width), *(other.keys for other in others)])
        other_own = torch.cat([torch.empty(0), *(other.own for other in others)])
        bias = fit_bias(index, _stored_neuron(index, edit), other_keys, other_own, match_key(edit)[1])
        if bias != edit.bias:
            with_new_bias = _load_keys(index, edit, bias)
            biases[expert] = bias, float(with_new_bias.own.min())
            changed += [(edit, _load_keys(index, edit, edit.bias)), (edit, with_new_bias)]
    return biases


def check_no_collision(index: Index, reactivated: Sequence[Edit]) -> None:
    """Raise `UsageError` if a reactivated edit collides with an active one: its prompt would route to the other."""
    own = index.own_activations.all()[:, 0]
    for edit in reactivated:
        if edit.expert not in index.row_of:
            continue
        row = index.row_of[edit.expert]
        activations = index.activations_on_keys()
        is_own_key = torch.tensor([expert == edit.expert for expert in index.expert_of_key])
        on_own_keys = activations[is_own_key].clone()  # `BLOCKED` on neurons that do not compete
        on_own_keys[:, row] = -torch.inf
        lost = on_own_keys.amax(dim=1) >= own[is_own_key]
        colliding = [index.experts[other] for other in on_own_keys.argmax(dim=1)[lost].tolist()]
        captured = (activations[:, row] >= own) & ~is_own_key
        colliding += [index.expert_of_key[key] for key in captured.nonzero().flatten().tolist()]
        if colliding:
            other = index.project.find(colliding[0])
            raise UsageError(
                f"this would reactivate edit {edit.id} ({edit.prompt!r}), which collides with the newer edit "
                f"{other.id} ({other.prompt!r}): the base cannot distinguish their prompts",
                hint=f"revert {other.id} too: `scen revert {other.id}`",
            )


def _compete(index: Index, first: Edit, second: Edit) -> bool:
    """Whether two edits may answer prompts about the same subject (`Index.competing`)."""
    return not index.recipe.masks_subjects or same_subject(match_key(first)[1], match_key(second)[1])


def _was_active(edit: Edit, later: int) -> bool:
    """Whether an edit was active when edit `later` was made; reverted edits are not asked about."""
    return edit.state == "active" or (edit.superseded_by or 0) > later


def _stored_neuron(index: Index, edit: Edit) -> Tensor:
    return index.normalize_neuron(torch.from_numpy(index.project.files.index(edit)["neuron"]))


def _load_keys(index: Index, edit: Edit, bias: float | None) -> _ExpertKeys:
    """The keys of an expert, active or not, by its first edit; activations as its neuron gives them with this bias."""
    arrays = index.project.files.index(edit)
    keys = index.prepare_keys(torch.from_numpy(arrays["key"]).view(-1, index.width))
    own = index.exact_activation(keys, index.normalize_neuron(torch.from_numpy(arrays["neuron"])))
    return _ExpertKeys(keys, own - (bias or 0.0))


def _excess(index: Index, edit: Edit, other: _ExpertKeys) -> float:
    """How far the activation of an expert's neuron on another expert's keys exceeds the highest allowed value.

    It is near 0 if these keys set the bias of this expert, and clearly negative if they do not matter.
    """
    row = index.row_of.get(edit.id)
    neuron = _stored_neuron(index, edit) if row is None else index.neurons.all()[row]
    on_others = index.unbiased_activations(other.keys, neuron[None])[:, 0] - (edit.bias or 0.0)
    return float((on_others - other.own).max()) + MARGIN
