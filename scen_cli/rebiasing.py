"""Biases of closed-form neurons, as they would be had other edits come: each follows from the keys that were there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scen_cli.indexing import MARGIN, ROUNDING, Index
from scen_cli.project.rows import Edit


@dataclass(frozen=True)
class _Met:
    """Prepared keys (n, h) of an expert, and what they give their own neuron (n,), less its bias."""

    keys: Tensor
    own: Tensor


def biases_anew(index: Index, gone: Sequence[Edit], back: Sequence[Edit]) -> dict[int, tuple[float, float]]:
    """(bias, least activation on its own keys) of every later expert in force whose bias is another without the edits
    that went, or with those that came back. Only experts whose bias one of the changed keys comes near to setting are
    looked at: those are few. Raises `DamageFound` if a file that this depends on is not whole."""
    ledger = index.project.ledger
    edits = {edit.id: edit for edit in ledger.edits("active", "superseded") if edit.expert == edit.id}
    moved = [_meet(index, edit) for edit in (*gone, *back) if edit.expert == edit.id]
    found: dict[int, tuple[float, float]] = {}
    for expert in [expert for expert in index.experts if expert > min(edit.id for edit in (*gone, *back))]:
        if not any(_over(index, expert, met) > -ROUNDING for met in moved):
            continue
        beside = [edit for edit in edits.values() if edit.id < expert and _stood(edit, expert)]
        others = [_meet(index, edit, *found.get(edit.id, (None,))[:1]) for edit in beside]
        bias, activation = _bias_beside(index, edits[expert], others)
        if bias != edits[expert].bias:
            found[expert] = (bias, activation)
            moved += [_meet(index, edits[expert]), _meet(index, edits[expert], bias)]
    return found


def _stood(edit: Edit, later: int) -> bool:
    """Whether an edit, as far as it was not taken back, was in force when a later one came."""
    return edit.state == "active" or (edit.superseded_by or 0) > later


def _meet(index: Index, edit: Edit, bias: float | None = None) -> _Met:
    """The keys of an expert, in force or not, by its first edit; as if its neuron had this bias, if it is given."""
    arrays = index.project.files.index(edit)
    keys = index.prepare(torch.from_numpy(arrays["key"]).view(-1, index.width))
    own = index.measure(keys, index.ready(torch.from_numpy(arrays["neuron"])))
    return _Met(keys, own - ((edit.bias or 0.0) if bias is None else bias))


def _over(index: Index, expert: int, other: _Met) -> float:
    """By how much an expert's neuron, with its bias, is too strong on another's keys; nearly 0 where these keys set
    the bias, and less where they do not matter."""
    row = index.experts.index(expert)
    on_others = index.score(other.keys, index.neurons.all()[row : row + 1])[:, 0] - index.biases[row]
    return float((on_others - other.own).max()) + MARGIN


def _bias_beside(index: Index, edit: Edit, others: Sequence[_Met]) -> tuple[float, float]:
    """The bias that an expert's neuron takes beside others, and the least that it then gives its own keys."""
    neuron = index.ready(torch.from_numpy(index.project.files.index(edit)["neuron"]))
    keys = torch.cat([torch.empty(0, index.width), *(met.keys for met in others)])
    bias = index.bias_beside(neuron, keys, torch.cat([torch.empty(0), *(met.own for met in others)]))
    return bias, float(_meet(index, edit, bias).own.min())
