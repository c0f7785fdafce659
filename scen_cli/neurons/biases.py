"""Recompute the biases of closed-form neurons when edits are reverted or reactivated.

A bias depends on the keys that were active when its edit was made. After a revert, each bias must be what it would be
if the reverted edits had never been made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scen_cli.errors import DamageFound, UsageError
from scen_cli.neurons.admission import fit_bias
from scen_cli.neurons.index import MARGIN, ROUNDING, Index
from scen_cli.project.ledger_rows import Edit


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
    changed = [_load_keys(index, edit, edit.bias) for edit in reactivated if edit.expert == edit.id]
    check_all = False
    for edit in reverted:
        try:
            changed += [_load_keys(index, edit, edit.bias)] if edit.expert == edit.id else []
        except DamageFound:
            check_all = True
    biases: dict[int, tuple[float, float]] = {}
    first = min(edit.id for edit in (*reverted, *reactivated))
    for expert, edit in experts.items():
        if expert <= first:  # made before any of the changed edits
            continue
        if not check_all and not any(_excess(index, edit, keys) > -ROUNDING for keys in changed):
            continue
        others = [
            _load_keys(index, other, biases[other.id][0] if other.id in biases else other.bias)
            for other in experts.values()
            if other.id < expert and _was_active(other, expert)
        ]
        other_keys = torch.cat([torch.empty(0, index.width), *(other.keys for other in others)])
        other_own = torch.cat([torch.empty(0), *(other.own for other in others)])
        bias = fit_bias(index, _stored_neuron(index, edit), other_keys, other_own)
        if bias != edit.bias:
            with_new_bias = _load_keys(index, edit, bias)
            biases[expert] = bias, float(with_new_bias.own.min())
            changed += [_load_keys(index, edit, edit.bias), with_new_bias]
    return biases


def check_no_collision(index: Index, reactivated: Sequence[Edit]) -> None:
    """Raise `UsageError` if a reactivated edit collides with an active one: its prompt would route to the other."""
    own = index.own_activations.all()[:, 0]
    for edit in reactivated:
        if edit.expert not in index.experts:
            continue
        row = index.experts.index(edit.expert)
        activations = index.activations_on_keys()
        is_own_key = torch.tensor([expert == edit.expert for expert in index.expert_of_key])
        on_own_keys = activations[is_own_key].clone()
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
    if edit.id in index.experts:
        neuron = index.neurons.all()[index.experts.index(edit.id)]
    else:
        neuron = _stored_neuron(index, edit)
    on_others = index.unbiased_activations(other.keys, neuron[None])[:, 0] - (edit.bias or 0.0)
    return float((on_others - other.own).max()) + MARGIN
