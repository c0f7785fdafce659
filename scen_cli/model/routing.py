"""From keys to a decision: activations of the indexing neurons, and which of them wins.

This file needs torch alone, and is copied as it is into exported checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from scen_cli.model.keys import KeyConfig

BASE = -1  # in a choice: this row keeps the base's own projection


@dataclass(frozen=True)
class Whitening:
    """Keys centred on the guard's `mean` (h,), at unit length, and shrunk along its `axes` (r, h), each by
    1 + its one of `scales` (r,): what many prompts have in common no longer makes two of them alike."""

    mean: Tensor
    axes: Tensor
    scales: Tensor

    def __call__(self, keys: Tensor) -> Tensor:
        """Keys (..., h) whitened, (..., h), at unit length, in float32; in float64 if the keys are."""
        unit, keys = nn.functional.normalize, at_least_single(keys)
        mean, axes, scales = (tensor.to(keys) for tensor in (self.mean, self.axes, self.scales))
        centred = unit(keys - mean, dim=-1)
        return unit(centred + ((centred @ axes.T) * scales) @ axes, dim=-1)


@dataclass(frozen=True)
class Routing:
    """How a prompt finds its edit: the threshold, and how keys are read. Activations are sigmoid(w.k), or with
    `cosine` the cosine of neuron and (whitened) key. A whole prompt that gives `own_activation_floor` or more is not read in parts:
    no edit's own prompt gives its neuron less."""

    theta: float
    cosine: bool = False
    key_config: KeyConfig = field(default_factory=KeyConfig)
    own_activation_floor: float = 0.0


def activations_of(
    keys: Tensor, neurons: Tensor, cosine: bool, whitening: Whitening | None = None, biases: Tensor | None = None
) -> Tensor:
    """Activations (rows, t) of W_merge's `normalize_neurons`d neurons (t, h) for keys (rows, h), in float32.

    The paper's: sigmoid(W_merge k), equation 10. With `cosine`, the cosine of the neuron and the key, whitened
    if there is a whitening; less the row's bias, by which a neuron that sits in a crowd must be surer.
    """
    activations = score(prepare(keys, cosine, whitening), neurons, cosine)
    return activations if biases is None else activations - biases


def prepare(keys: Tensor, cosine: bool, whitening: Whitening | None = None) -> Tensor:
    """Keys (rows, h) as neurons are to meet them, float32 (or float64): as they are; for the cosine at unit length."""
    keys = at_least_single(keys)
    if not cosine:
        return keys
    return nn.functional.normalize(keys, dim=-1) if whitening is None else whitening(keys)


def at_least_single(keys: Tensor) -> Tensor:
    """Keys in float32, unless they are in float64."""
    return keys if keys.dtype == torch.float64 else keys.float()


def normalize_neurons(neurons: Tensor, cosine: bool) -> Tensor:
    """Neurons (t, h) as they meet prepared keys, float32: for the cosine at unit length."""
    return nn.functional.normalize(neurons.float(), dim=-1) if cosine else neurons.float()


def score(prepared: Tensor, neurons: Tensor, cosine: bool) -> Tensor:
    """Activations (rows, t) of prepared keys (rows, h) and ready neurons, without biases: one product."""
    product = prepared @ neurons.to(prepared.dtype).T
    return product if cosine else torch.sigmoid(product)


def choose(activations: Tensor, theta: float) -> Tensor:
    """Equations 11 and 12: the strongest neuron of each row if it passes theta, else `BASE`.
    A neuron that is not a number (a damaged one) is never the strongest."""
    if activations.shape[1] == 0:
        return torch.full(activations.shape[:1], BASE, device=activations.device)
    strongest, index = activations.nan_to_num(nan=-torch.inf).max(dim=1)
    return torch.where(strongest > theta, index, torch.full_like(index, BASE))


def largest(activations: Tensor, rows: Tensor, count: int) -> Tensor:
    """Of activations (n, t) of parts, each of one of `rows` (n,), the largest by row: (count, t)."""
    if len(activations) == count:  # nothing has parts
        return activations
    out = torch.full((count, activations.shape[1]), -torch.inf, device=activations.device)
    index = rows[:, None].to(out.device).expand_as(activations)
    return out.scatter_reduce(0, index, activations, "amax")
