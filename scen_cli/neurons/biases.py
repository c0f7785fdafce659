"""Biases of closed-form neurons, as they would be had other edits come: each follows from the keys that were there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scen_cli.errors import DamageFound, UsageError
from scen_cli.neurons.index import MARGIN, ROUNDING, Index
from scen_cli.project.ledger_rows import Edit


@dataclass(frozen=True)
class _Met:
    """Prepared keys (n, h) of an expert, and what they give their own neuron (n,), less its bias."""

    keys: Tensor
    own: Tensor


def biases_anew(index: Index, gone: Sequence[Edit], back: Sequence[Edit]) -> dict[int, tuple[float, float]]:
    """(bias, least activation on its own keys) of every expert whose bias is another without the edits that went, or
    with those that came back: of those that came later, active or superseded, for these may come back too.

    Only experts whose bias one of the changed keys comes near to setting are looked at, which are few; all of them if
    what went cannot be read. Raises `DamageFound` if a file that stays is not whole.
    """
    ledger = index.project.ledger
    edits = {edit.id: edit for edit in ledger.edits("active", "superseded") if edit.expert == edit.id}
    moved = [_meet(index, edit) for edit in back if edit.expert == edit.id]
    all_of_them = False
    for edit in gone:
        try:
            moved += [_meet(index, edit)] if edit.expert == edit.id else []
        except DamageFound:
            all_of_them = True
    found: dict[int, tuple[float, float]] = {}
    first = min(edit.id for edit in (*gone, *back))
    for expert in [expert for expert in edits if expert > first]:
        if not all_of_them and not any(_over(index, edits[expert], met) > -ROUNDING for met in moved):
            continue
        beside = [edit for edit in edits.values() if edit.id < expert and _stood(edit, expert)]
        others = [_meet(index, edit, *found.get(edit.id, (None,))[:1]) for edit in beside]
        bias, activation = _bias_beside(index, edits[expert], others)
        if bias != edits[expert].bias:
            found[expert] = (bias, activation)
            moved += [_meet(index, edits[expert]), _meet(index, edits[expert], bias)]
    return found


def check_they_call_themselves(index: Index, back: Sequence[Edit]) -> None:
    """Raise `UsageError` if an edit that came back takes the prompt of one that is active, or the other way round."""
    for edit in back:
        if edit.expert not in index.experts:
            continue
        mine = torch.tensor([expert == edit.expert for expert in index.key_of])
        row = index.experts.index(edit.expert)
        activations = index.on_all_keys()
        own = index.own.all()[:, 0]
        rivals = activations[mine].clone()
        rivals[:, row] = -torch.inf
        lost = [index.experts[int(place)] for place in rivals.argmax(dim=1)[rivals.amax(dim=1) >= own[mine]]]
        taken = (activations[:, row] >= own) & ~mine
        lost += [index.key_of[place] for place in taken.nonzero().flatten().tolist()]
        if lost:
            other = index.project.find(lost[0])
            raise UsageError(
                f"edit {edit.id} ({edit.prompt!r}) would be active again, and to this base its prompt is that of "
                f"edit {other.id} ({other.prompt!r}), which was made since",
                hint=f"`scen revert {other.id}` too, or leave things as they are",
            )


def _stood(edit: Edit, later: int) -> bool:
    """Whether an edit, as far as it was not taken back, was active when a later one came."""
    return edit.state == "active" or (edit.superseded_by or 0) > later


def _meet(index: Index, edit: Edit, bias: float | None = None) -> _Met:
    """The keys of an expert, active or not, by its first edit; as if its neuron had this bias, if it is given."""
    arrays = index.project.files.index(edit)
    keys = index.prepare(torch.from_numpy(arrays["key"]).view(-1, index.width))
    own = index.measure(keys, index.normalize_neuron(torch.from_numpy(arrays["neuron"])))
    return _Met(keys, own - ((edit.bias or 0.0) if bias is None else bias))


def _over(index: Index, edit: Edit, other: _Met) -> float:
    """By how much an expert's neuron, with its bias, is too strong on another's keys; nearly 0 where these keys set
    the bias, and less where they do not matter."""
    if edit.id in index.experts:
        neuron = index.neurons.all()[index.experts.index(edit.id)]
    else:
        neuron = index.normalize_neuron(torch.from_numpy(index.project.files.index(edit)["neuron"]))
    on_others = index.score(other.keys, neuron[None])[:, 0] - (edit.bias or 0.0)
    return float((on_others - other.own).max()) + MARGIN


def _bias_beside(index: Index, edit: Edit, others: Sequence[_Met]) -> tuple[float, float]:
    """The bias that an expert's neuron takes beside others, and the least that it then gives its own keys."""
    neuron = index.normalize_neuron(torch.from_numpy(index.project.files.index(edit)["neuron"]))
    keys = torch.cat([torch.empty(0, index.width), *(met.keys for met in others)])
    bias = index.bias_beside(neuron, keys, torch.cat([torch.empty(0), *(met.own for met in others)]))
    return bias, float(_meet(index, edit, bias).own.min())
